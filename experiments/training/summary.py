"""What the training experiment found: the claims of its docstring, and a table of all nets."""

from typing import Any

import numpy as np

from experiments import harness, text
from experiments.claims import Claim, as_numbers, in_words, mean_interval

from .arms import CLIPPINGS

PAIRS = (  # (ends lower, than, in words)
    ("tanh, orthogonal", "tanh, Gaussian", "orthogonal weights end lower than Gaussian ones"),
    ("ReLU, identity", "tanh, Gaussian", "a ReLU net that starts at the identity ends lower than a Gaussian tanh net"),
    ("LSTM, forget bias 1", "LSTM, forget bias 0", "a forget bias of 1 ends lower than 0"),
    ("LSTM, forget bias 3", "LSTM, forget bias 1", "a forget bias of 3 ends lower than 1"),
    ("LSTM, chrono", "LSTM, forget bias 1", "chrono initialisation ends lower than a forget bias of 1"),
    ("LRU, ring", "LSTM, forget bias 1", "the LRU ends lower than an LSTM of forget bias 1"),
)
REMEMBERS = "LSTM, forget bias 1"


def summarise(results: dict[str, Any], config: Any) -> harness.Summary:
    """Table, claims and their numbers."""
    lines, results = text.take_alphabet(results)
    tasks = list(dict.fromkeys(name.split(": ")[0] for name in results))
    claims = {task: make_claims(task, results) for task in tasks}
    for task in tasks:
        lines += [*_table(task, results), ""]
    for task, made in claims.items():
        lines += [
            f"Claims on {task} (t intervals over keys, paired; losses held out, the last record):",
            *in_words(made),
        ]
    numbers = {
        "nets": {name: describe(curves) for name, curves in results.items()},
        "claims": {task: as_numbers(made) for task, made in claims.items()},
    }
    return harness.Summary(lines, numbers)


def make_claims(task: str, results: dict[str, Any]) -> list[Claim]:
    """Those of the docstring that this task's nets can decide."""
    of = lambda arm: results[f"{task}: {arm}"]
    last = lambda arm: of(arm).loss[-1]
    has = lambda *arms: all(f"{task}: {arm}" in results for arm in arms)
    claims = [
        Claim(
            words[0].upper() + words[1:],
            f"loss of {worse} less that of {better}",
            _paired(last(worse), last(better)),
            0,
        )
        for better, worse, words in PAIRS
        if has(better, worse)
    ]
    if has(REMEMBERS):
        reach = of(REMEMBERS).reach_90
        number = f"90 % reach after less before training, steps, {REMEMBERS}"
        claims.append(Claim("Memory is learned", number, mean_interval(reach[-1] - reach[0]), 0))
    if has(f"gain 2, {CLIPPINGS[0]}"):
        none, norm = (last(f"gain 2, {kind}") for kind in CLIPPINGS[:2])
        words = "A chaotic net ends lower with clipping by the norm than without"
        claims.append(Claim(words, "loss without less with", _paired(none, norm), 0))
        cosine = of(f"gain 2, {CLIPPINGS[1]}").cosine.mean(axis=0)  # [D, kinds]
        words = "Clipping in time turns the mean gradient by more than clipping by the norm"
        number = "cosine to the exact mean gradient, by the norm less in time, mean over training"
        claims.append(Claim(words, number, _paired(cosine[:, 1], cosine[:, 2]), 0))
    return claims


def describe(curves: Any) -> dict[str, Any]:
    """The first and last record of one net, medians over keys but for the loss and the share of right answers."""
    middle = {name: np.median(getattr(curves, name), axis=1)[[0, -1]].tolist() for name in SHOWN}
    return {
        "rate": float(curves.rate),
        "loss": mean_interval(curves.loss[-1])._asdict(),
        "accuracy": mean_interval(curves.accuracy[-1])._asdict(),
        **middle,
        "log_sigma": np.median(curves.log_sigma, axis=1)[:, [0, -1]].tolist(),
        **({"cosine": curves.cosine.mean(axis=(0, 1)).tolist()} if curves.cosine.size else {}),
        **({"shrinkage": curves.shrinkage.mean(axis=(0, 1)).tolist()} if curves.shrinkage.size else {}),
    }


SHOWN = ("reach_50", "reach_90", "lambda_1", "lambda_1_error", "log_sigma_max", "gradient_norm", "clipped_norm")


def _paired(worse, better):
    return mean_interval(worse - better)


def _table(task, results):
    """One line a net."""
    curves = {name.split(": ")[1]: each for name, each in results.items() if name.startswith(f"{task}: ")}
    memoryless = float(next(iter(curves.values())).memoryless)
    lines = [
        f"{task}, {len(next(iter(curves.values())).loss[0])} keys; without memory {memoryless:.3f}. Medians over keys"
        " but for loss and right (mean, 95 % t interval); arrows: before and after training",
        f"{'net':28} {'rate':>6} {'loss held out':>24} {'right':>6} {'90 % reach':>12} {'λ_1, nats a step':>25}"
        f" {'ln σ_1':>12} {'‖dC/dθ‖':>14} clipped",
    ]
    for name, each in curves.items():
        found = describe(each)
        loss, arrow = found["loss"], lambda key, digits, found=found: " → ".join(f"{x:.{digits}f}" for x in found[key])
        growth = f"{found['lambda_1'][0]:.2f} → {found['lambda_1'][1]:.2f} ± {found['lambda_1_error'][1]:.2f}"
        lines.append(
            f"{name:28} {found['rate']:6g} {loss['value']:8.3f} ({loss['low']:.3f}, {loss['high']:.3f})"
            f" {found['accuracy']['value']:6.2f} {arrow('reach_90', 0):>12} {growth:>25}"
            f" {arrow('log_sigma_max', 1):>12} {arrow('gradient_norm', 2):>14} {found['clipped_norm'][1]:.2f}"
        )
    return lines
