"""python -m experiments [NAME] [options]: run an experiment; without a name, the main job."""

import importlib
import sys

EXPERIMENTS = {
    "xray": "the main job: prove the gradient of a character model and show where it goes",
    "identities": "every equation of the source notes judged by running it",
    "lstm_memory": "LSTM gates on real text and the three meanings of dC_t/dC_{t-1}, over forget biases",
    "perturbation": "predicted and actual divergence of two trajectories, forward and backward",
    "vanishing": "recurrent gain, scheme and cell on real text: growth rates against what theory expects",
    "chaos": "random networks through the transition to chaos, against the mean field and across sizes",
    "precision": "digits of each singular value kept by the assembled product and by the graded method",
    "truncation": "what truncated gradients keep, their bias and spread at equal cost, and training by each on text",
    "benchmark": "speed and memory beside Flax, Equinox, PyTorch, clvlib, lyapax and chaotax, if installed",
    "online": "gradients forward in time on four tasks: cosine to the exact one, final loss and cost",
}
MAIN_JOB = "xray"


def main(arguments: list[str]) -> int:
    if arguments and arguments[0] in ("-h", "--help", "list"):
        print("python -m experiments [NAME] [options]; NAME --help lists its options; no NAME: " + MAIN_JOB)
        for name, purpose in EXPERIMENTS.items():
            print(f"  {name:12} {purpose}")
        return 0
    named = bool(arguments) and not arguments[0].startswith("-")
    name, options = (arguments[0], arguments[1:]) if named else (MAIN_JOB, arguments)
    if name not in EXPERIMENTS:
        print(f"experiments: unknown experiment {name!r}, expected one of {', '.join(EXPERIMENTS)}", file=sys.stderr)
        return 2
    try:
        return importlib.import_module(f"experiments.{name}").main(options)
    except (ValueError, TypeError, OSError) as error:
        print(f"experiments {name}: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
