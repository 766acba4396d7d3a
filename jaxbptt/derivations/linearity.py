"""Whether a pullback is linear in its cotangent: one that clips or rescales inside is not the transpose of anything."""

from collections.abc import Hashable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbptt._jaxprs.text import uses_custom_vjp
from jaxbptt.derivations.compiled import map_rows
from jaxbptt.derivations.matching import Piece
from jaxbptt.derivations.reports import Finding
from jaxbptt.derivations.samples import Stream, epsilon_of, normal_like
from jaxbptt.partials import MISSING_RULE
from jaxbptt.types import Inputs, Key, Params, States, Step

MAGNITUDES = (1e-3, 1e3)  # beside 1
IN_HALF = (1 / 8, 8.0)  # in float16 and bfloat16
HALF = 1e-4  # eps above this is half precision's
SLACK = 1e4  # times eps


def find_nonlinear_step(
    step: Step, params: Params, previous: States, inputs: Inputs, key: Key, program: Hashable
) -> Finding | None:
    """A finding if JAX's own vjp of the step is not linear: only a `jax.custom_vjp` inside can make it so."""
    first = jax.tree.map(lambda leaf: leaf[0], (previous, inputs))
    if not uses_custom_vjp(step, params, *first):
        return None
    scales = np.asarray([1, *magnitudes(params)])
    cotangents = [normal_like(Stream(key, number), previous) for number in (6, 7)]

    def body(shared, _):
        params, previous, inputs, cotangents = shared
        both = jax.tree.map(jnp.add, *cotangents)
        scaled = [jax.tree.map(lambda leaf, s=s: leaf * jnp.asarray(s, leaf.dtype), cotangents[0]) for s in scales]

        def pull(state, x, cotangent):
            return jax.vjp(lambda params, state: step(params, state, x), params, state)[1](cotangent)

        return [jax.vmap(pull)(previous, inputs, each) for each in (*scaled, cotangents[1], both)]

    try:
        pulled = map_rows(program and ("linear", program), body, (params, previous, inputs, cotangents), np.zeros(1))
    except MISSING_RULE:  # there is no reverse mode to be wrong
        return None
    flat = [np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(each)]) for each in pulled]
    off = worst_deviation(flat[0], list(zip(flat[1:-2], scales[1:], strict=True)), flat[-2], flat[-1])
    if off <= SLACK * epsilon_of(params):
        return None
    words = "a jax.custom_vjp in it gives the step a vjp that is not linear in its cotangent"
    sentence = f"step: {words} (off by {off:.1e} relative), so that no gradient through it is defined"
    return Finding("step", None, off, None, None, None, None, float(np.linalg.norm(flat[0])), f"{sentence}.")


def add_multiples(cotangents: Any) -> Any:
    """The cotangents [T, C, ...] and three more: the first at two other magnitudes, and the first plus the second."""
    scales = magnitudes(cotangents)

    def extend(leaf):
        first, second = leaf[:, :1], leaf[:, 1:2]
        multiples = [first * jnp.asarray(scale, leaf.dtype) for scale in scales]
        return jnp.concatenate((leaf, *multiples, first + second), axis=1)

    return jax.tree.map(extend, cotangents)


def find_nonlinear_pieces(
    called: Mapping[str, np.ndarray | str], pieces: Mapping[str, Piece], count: int, epsilon: float
) -> list[Finding]:
    """A finding for each piece of a pullback called at `add_multiples` of `count` cotangents that is not linear."""
    scales = IN_HALF if epsilon > HALF else MAGNITUDES
    findings = []
    for name, piece in pieces.items():
        values = called.get(name)
        if values is None or isinstance(values, str):
            continue
        worst = 0.0
        for pulled, tolerance in zip(values, piece.tolerance, strict=True):
            pulled = pulled.reshape(len(pulled), -1)  # a scalar leaf too
            first, second, *_ = pulled
            multiples = list(zip(pulled[count:-1], scales, strict=True))
            off = worst_deviation(first, multiples, second, pulled[-1])
            size = np.max(np.abs(first), initial=0) + np.max(np.abs(second), initial=0)
            if np.all(np.isfinite(pulled)) and off > SLACK * epsilon and off * size > 4 * tolerance:
                worst = max(worst, off)
        if worst:
            words = (
                f"{name} is not linear in its cotangent: the pullback of a multiple or of a sum is off by {worst:.1e}"
            )
            norm = float(np.linalg.norm(piece.expected))
            findings.append(Finding(name, None, worst, None, None, None, None, norm, f"{words} relative."))
    return findings


def worst_deviation(
    pulled: np.ndarray, scaled: list[tuple[np.ndarray, float]], other: np.ndarray, both: np.ndarray
) -> float:
    """The largest of |pull(s v)/s − pull(v)| and |pull(v + w) − pull(v) − pull(w)|, relative to the largest entries."""
    size = np.max(np.abs(pulled), initial=0) + np.max(np.abs(other), initial=0)
    off = [np.max(np.abs(value / scale - pulled), initial=0) for value, scale in scaled]
    off.append(np.max(np.abs(both - pulled - other), initial=0))
    return float(np.max(off) / max(size, np.finfo(np.float64).tiny))


def magnitudes(like: Any) -> tuple[float, float]:
    """The magnitudes at which cotangents of this dtype are tried, beside 1."""
    return IN_HALF if epsilon_of(like) > HALF else MAGNITUDES
