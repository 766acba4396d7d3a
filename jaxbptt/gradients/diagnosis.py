"""Why a gradient is not finite though the loss is: the first step whose derivative is not, in either mode."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from jaxbptt import _validation
from jaxbptt.gradients.adjoint import sequential_adjoint
from jaxbptt.gradients.forward import Problem, join_early, read_out, require_finite_losses
from jaxbptt.models.model import Model
from jaxbptt.partials import MISSING_RULE, step_partials
from jaxbptt.trajectories import flatten_steps, run_steps

UNTAKEN = "the branch that `where` did not take has no finite derivative (guard its argument, not only its result)"
NOWHERE = "the step has no finite derivative there (such as a root, a norm or a logarithm at 0)"
PARTIALS = "dh_t/dh_{t−1}", "∂⁺h_t/∂⁺θ"


def require_finite_result(model: Model, problem: Problem, losses: Float[Array, " time"], gradient: Any) -> None:
    """Raise, naming the first bad step, if concrete states, losses or a gradient hold NaN or inf."""
    if _has_numbers((losses, problem)) and not np.all(np.isfinite(losses)):
        trajectory = run_steps(model, problem.params, problem.inputs, problem.initial)
        require_finite_losses(model, problem.params, trajectory, problem.targets, losses)
    require_finite_gradient(model, problem, gradient)


def require_finite_gradient(model: Model, problem: Problem, gradient: Any) -> None:
    """Raise, naming the first bad step, if a concrete result made of derivatives holds NaN or inf; the loss is finite.

    The causes: the branch that `where` did not take, a root or a norm at zero, a product that leaves the float range.
    """
    if not _has_numbers((gradient, problem)) or _is_finite(gradient):
        return
    trajectory = run_steps(model, problem.params, problem.inputs, problem.initial)
    _, local, direct, early = read_out(model, problem.params, trajectory, problem.targets, problem.length)
    local, _ = join_early(local, early)
    modes = {mode: _finite_partials(model, problem.params, trajectory, mode) for mode in ("reverse", "forward")}
    cause = _first_bad_step(modes) or _bad_readout(local, direct) or _overflow(model, problem.params, trajectory, local)
    raise ValueError(f"gradient: got NaN or inf though the loss is finite; {cause}")


def _has_numbers(tree):
    return all(map(_validation.is_concrete, jax.tree.leaves(tree)))


def _is_finite(tree):
    return all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(tree))


def _finite_partials(model, params, trajectory, mode):
    """[T, 2] bool: whether dh_t/dh_{t−1} and ∂⁺h_t/∂⁺θ are finite in one mode; None where the step lacks the mode."""
    theta, unravel_params = ravel_pytree(params)
    unravel = ravel_pytree(trajectory.initial)[1]
    differentiate = jax.jacrev if mode == "reverse" else jax.jacfwd

    def at(step):
        state, x = step
        flat_step = lambda h, theta: ravel_pytree(model.step(unravel_params(theta), unravel(h), x))[0]
        parts = differentiate(flat_step, argnums=(0, 1))(ravel_pytree(state)[0], theta)
        return jnp.stack([jnp.all(jnp.isfinite(part)) for part in parts])

    try:
        return np.asarray(jax.lax.map(at, (trajectory.previous, trajectory.inputs)))
    except MISSING_RULE:
        return None


def _first_bad_step(modes):
    """What is said of the first step with a partial that is not finite; None if all are."""
    known = [flags for flags in modes.values() if flags is not None]
    # dh_1/dh_0 alone does no harm where h_0 is a constant: another bad step is the likelier cause.
    order = [sorted(np.argwhere(~flags).tolist(), key=lambda place: (place == [0, 0], *place)) for flags in known]
    if not any(order):
        return None
    t, which = next(filter(None, order))[0]  # of reverse mode, where it has any
    said = " and ".join(
        f"{'not ' * bool(not flags[t, which])}finite in {mode} mode"
        for mode, flags in modes.items()
        if flags is not None
    )
    differ = len({bool(flags[t, which]) for flags in known}) == 2
    return f"first at step t = {t + 1}, where {PARTIALS[which]} is {said}: {UNTAKEN if differ else NOWHERE}"


def _bad_readout(local, direct):
    if _is_finite((local, direct)):
        return None
    good = np.isfinite(np.asarray(flatten_steps(local))).all(axis=1)
    at = "" if good.all() else f"first at step t = {good.argmin() + 1}, where "
    return f"{at}the readout or the loss has no finite derivative"


def _overflow(model, params, trajectory, local):
    """Every partial is finite: what is made of them is not."""
    residuals, pull = step_partials(model).pull_over(params, trajectory)
    keep = lambda at, cotangent: (pull(at, cotangent), ravel_pytree(cotangent)[0])
    adjoints, _ = sequential_adjoint(keep, residuals, local, jax.tree.map(jnp.zeros_like, trajectory.initial))
    good = np.isfinite(np.asarray(adjoints)).all(axis=1)
    if good.all():
        return (
            "the derivatives of all steps are finite, and so is λ_t carried back step by step: a sum or a sensitivity"
            " left the float range, or adjoint='parallel' met a pullback that is not linear or lost half its digits"
        )
    last = len(good) - good[::-1].argmin()
    return (
        "the derivatives of all steps are finite, but λ_t, carried back from the end to"
        f" step t = {last}, leaves the float range"
    )
