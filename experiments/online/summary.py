"""What the online experiment found, in numbers and words."""

from typing import Any

import numpy as np

from experiments import harness, text
from experiments.descent import find_best_rates

from .rules import PUBLISHED

MEASURES = ("cosine", "mean_cosine_one_step")
WHY = """published: sketched-rtrl's shipped results, N = 64. They differ from ours in
  what is compared: single steps averaged over a batch, along the training by the rule itself, which moves the params
    at every step (ours: fixed params, along the training by exact gradients; both leave out the readout)
  the weights: uniform of gain 0.58 (ours: Gaussian of gain 1 unless --gain says otherwise)
  the tasks: copy and adding with a loss only at the end of 50 and 100 steps, rotation, a^n b^n, 20,000 steps long
  RFLO: there a trace of leak 0.9 on a cell without leak, as RFLO here; a plain Elman net has no leak, and RFLO read
    from the cell is the immediate derivative, a truncation to one step"""


def summarise(results: dict[str, Any], config: Any) -> harness.Summary:
    """Every task in numbers; the cosines beside the published ones."""
    read, results = text.take_alphabet(results)
    numbers = {name: judge(outcome) for name, outcome in results.items()}
    return harness.Summary([*read, *in_words(numbers), WHY], numbers)


def judge(outcome: Any) -> dict[str, Any]:
    """Of one task, per rule: cosines averaged over training and keys, final loss at the best rate, cost."""
    rules = {}
    for i, rule in enumerate(map(str, outcome.rules)):
        best, trained = find_best_rates(outcome.final[i]), np.isfinite(outcome.final[i]).any()
        rules[rule] = {
            "cosine": float(outcome.cosine[i, ..., -1].mean()),
            "cosine_start": float(outcome.cosine[i, 0, :, -1].mean()),
            "cosine_end": float(outcome.cosine[i, -1, :, -1].mean()),
            "cosine_one_step": float(outcome.cosine[i, ..., 0].mean()),
            "mean_cosine_one_step": float(outcome.mean_cosine[i, ..., 0].mean()),
            "cosine_with_readout": float(outcome.cosine_all[i].mean()),
            "final": float(outcome.final[i, best].mean()) if trained else None,
            "final_spread": float(outcome.final[i, best].std(ddof=1)) if trained else None,
            "rate": float(outcome.rates[best]) if trained else None,
            "state_floats": int(outcome.state_floats[i]),
            "flops_per_step": int(outcome.flops[i]),
        }
    return {"start": float(outcome.start.mean()), "rules": rules}


def in_words(summary: dict[str, Any]) -> list[str]:
    """The cosines beside the published ones, and the tasks by what each rule learned."""
    lines = ["cosine to the exact gradient, range over tasks, of whole sequences | of single steps | published"]
    for rule in next(iter(summary.values()))["rules"]:
        found = [[task["rules"][rule][measure] for task in summary.values()] for measure in MEASURES]
        spans = [f"{min(values):.2f} to {max(values):.2f}" for values in found]
        published = "{:.2f} to {:.2f}".format(*PUBLISHED[rule]) if rule in PUBLISHED else "none"
        lines.append(f"  {rule:22} {spans[0]} | {spans[1]} | {published}")
    for name, task in summary.items():
        trained = [item for item in task["rules"].items() if item[1]["final"] is not None]
        ranked = sorted(trained, key=lambda item: item[1]["final"])
        lost = ", ".join(f"{rule} {entry['final']:.3f}" for rule, entry in ranked)
        lines.append(f"{name}: loss per step from {task['start']:.3f} to {lost}")
    return lines
