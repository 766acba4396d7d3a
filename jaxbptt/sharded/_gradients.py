"""Gradients of one long sequence, or of a batch of them, over several devices.

Forward: the state is relayed from span to span, or every span's affine map is found and they are joined. Backward: μ
before a span is affine in μ after it, whatever the cell. Either way, once a span knows what it starts from, it runs as
on one device.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float

from jaxbptt import _validation
from jaxbptt.gradients.adjoint import add_initial, sequential_adjoint
from jaxbptt.gradients.backpropagation import METHODS
from jaxbptt.gradients.blocks import choose_blocks, pull_in_blocks, run_in_blocks, skip_in_blocks
from jaxbptt.gradients.diagnosis import require_finite_gradient, require_finite_result
from jaxbptt.gradients.forward import add_penalty, join_early, read_out, take_problem
from jaxbptt.gradients.resources import default_memory
from jaxbptt.gradients.sequence import make_runner
from jaxbptt.models.model import Model
from jaxbptt.partials import step_partials
from jaxbptt.sharded._place import find_later, find_start, place
from jaxbptt.sharded._spans import cut, on_devices, select
from jaxbptt.sharded._trajectory import run_span
from jaxbptt.trajectories import flatten_steps
from jaxbptt.trajectories._calls import start_of
from jaxbptt.types import AdjointMethod, Inputs, LossAndGrads, Params, State, Targets


def bptt(
    model: Model,
    params: Params,
    inputs: Inputs,
    targets: Targets,
    *,
    mesh: Mesh,
    time: str = "time",
    batch: str | None = None,
    initial: State | None = None,
    block: int | None = None,
    memory: int | None = None,
    adjoint: AdjointMethod = "auto",
) -> LossAndGrads:
    """`gradients.bptt` with the steps cut over the devices of one mesh axis, and sequences over those of another.

    With L = T/D steps on each of D devices, S numbers a state and p probes (N; n for a cell that knows the blocks
    [n, n] of its J_t; 1 for a diagonal one):

    forward: h is relayed over D spans, (D − 1) L dependent steps and D − 1 hops of S numbers; a cell that is affine in
      h takes 2 L steps, of one state and of p, and ⌈log₂ D⌉ + 1 hops of (p + 1) S numbers.
    backward, "sequential": μ is relayed in the same way.
    backward, "parallel": each span is reduced to μ → A μ + b, L steps of p + 1 cotangents; the maps are joined in
      ⌈log₂ D⌉ + 1 hops of (p + 1) S numbers, whatever T.
    Then every span runs once forward and once backward by itself, passes S numbers on to be compared where maps were
    joined, and the gradients are added up: one sum of |θ|.

    Memory of a device: 1/D of the data and of what the steps keep (`block` and `memory` bound it further), θ, a
    gradient and, in parallel, three maps. Compile it; over several processes this is the only way.

    Args:
      model: as in `gradients.bptt`; for a batch `models.batched(model, B)`.
      params: θ, the same on every device.
      inputs: x_1 … x_T, leading T (of a batch [T, B, ...]).
      targets: y_1 … y_T, alike.
      mesh: of any number of devices of one or several hosts, `jax.make_mesh((D,), ("time",))`.
      time: the mesh axis over which steps are cut; T is a multiple of its devices.
      batch: the one over which sequences are cut; B is a multiple of its devices. None: all on each.
      initial: h_0, as in `gradients.autodiff`.
      block, memory: as in `gradients.bptt`, for the L steps of one device.
      adjoint: "sequential", "parallel" (NaN where a span does not pass on what the joined maps said, to half the
        digits: μ is lost in the growth of A; so is h of an affine cell), or "auto": parallel if p < D, elsewhere than
        on a CPU if p ≤ 256.

    Returns:
      (C scalar, dC/dθ shaped like params), the same on every device.

    Raises:
      TypeError, ValueError: as `gradients.bptt`; a mesh that is none; an axis that it lacks; T or B that is no multiple
        of the devices.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxbptt import models, sharded
      >>> model = models.make_model(lambda w, h, x: w * h + x, jnp.zeros_like, lambda w, h: h, models.squared_error)
      >>> mesh = jax.make_mesh((jax.device_count(),), ("time",))
      >>> inputs = jnp.zeros(4 * jax.device_count()).at[0].set(1.0)
      >>> loss, grad = sharded.bptt(model, jnp.array(0.5), inputs, jnp.zeros_like(inputs), mesh=mesh)
      >>> round(float(loss), 1)  # ½ (1 + ¼ + ¹⁄₁₆ + …)
      0.7

    Reference: Blelloch (1990), CMU-CS-90-190 (scans of affine maps); S1.10 (λ_t).
    """
    _validation.require_choice("adjoint", adjoint, METHODS)
    for name, size in (("block", block), ("memory", memory)):
        if size is not None:
            _validation.require_size(name, size)
    if block is not None and memory is not None:
        raise ValueError(f"memory: got {memory} beside block = {block}, expected one of them")
    problem = take_problem(model, params, inputs, targets, initial)
    params, inputs, targets, initial, length = problem
    at = place(model, mesh, time, batch, length)
    first = start_of(model, params, initial)

    def on_one(params, first, inputs, targets):
        run = make_runner(at.model, params, first, jax.tree.map(lambda leaf: leaf[0], inputs))
        blocks = choose_blocks(run, first, inputs, block, _share_of_memory(mesh) if memory is None else memory)
        shape = at.shape(params, first, inputs)
        start, starts_right = find_start(
            at, params, first, inputs, shape, "auto", lambda state: skip_in_blocks(run, blocks, state, inputs)
        )
        saved, last = run_in_blocks(run, blocks, start, inputs)
        known = starts_right(last)

        def pull(later, saved, inputs, targets, *, linear=False):
            losses, local, direct, early = read_out(at.model, params, saved.steps(inputs), targets, length)
            local, first = join_early(local, early)
            if linear:
                local, first = jax.tree.map(jnp.zeros_like, (local, first))
            recurrent, earlier = run.backward(saved, inputs, local, later)
            earlier = earlier if first is None else jax.tree.map(jnp.add, earlier, first)
            return losses, jax.tree.map(jnp.add, direct, recurrent), earlier

        def pull_span(later, **linear):
            return pull_in_blocks(run, blocks, functools.partial(pull, **linear), saved, inputs, targets, later)

        later, agrees = find_later(at, shape, first, adjoint, lambda later, **linear: pull_span(later, **linear)[2])
        losses, grads, earlier = pull_span(later)
        if initial is None:
            own = select(at.time.index() == 0, earlier, jax.tree.map(jnp.zeros_like, earlier))
            grads = add_initial(at.model, params, grads, own)
        losses = losses if batch is None else jax.lax.psum(losses, batch)
        grads = at.add_up(grads)
        losses = jnp.where(known, losses, jnp.nan)
        known = known & agrees(earlier)
        return losses, jax.tree.map(lambda leaf: jnp.where(known, leaf, jnp.nan), grads)

    arguments = PartitionSpec(), at.states, at.data, at.data
    results = cut(0, time), PartitionSpec()
    losses, grads = on_devices(on_one, mesh, arguments, results)(params, first, inputs, targets)
    loss, grads = add_penalty(model, params, jnp.sum(losses), grads)
    require_finite_result(model, problem, losses, grads)
    return loss, grads


def adjoints(
    model: Model,
    params: Params,
    inputs: Inputs,
    targets: Targets,
    *,
    mesh: Mesh,
    time: str = "time",
    initial: State | None = None,
    adjoint: AdjointMethod = "auto",
) -> Float[Array, "time state"]:
    """λ_t = dC/dh_t as `gradients.adjoints`, each device its own steps'.

    Dependent steps, hops and memory as in `bptt`.

    Args:
      model, params, inputs, targets, mesh, time, initial, adjoint: as in `bptt`.

    Returns:
      [T, N] on the flattened state, cut over the devices; [t−1] is λ_t.

    Raises:
      TypeError, ValueError: as `bptt`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxbptt import models, sharded
      >>> model = models.make_model(lambda w, h, x: w * h + x, jnp.zeros_like, lambda w, h: h, models.squared_error)
      >>> mesh = jax.make_mesh((jax.device_count(),), ("time",))
      >>> inputs = jnp.ones(2 * jax.device_count())
      >>> found = sharded.adjoints(model, jnp.array(0.0), inputs, jnp.zeros_like(inputs), mesh=mesh)
      >>> found[:2, 0].tolist()  # λ_t = h_t = 1 where nothing is carried
      [1.0, 1.0]

    Reference: S1.10.
    """
    _validation.require_choice("adjoint", adjoint, METHODS)
    problem = take_problem(model, params, inputs, targets, initial)
    params, inputs, targets, initial, length = problem
    at = place(model, mesh, time, None, length)

    def on_one(params, first, inputs, targets):
        shape = at.shape(params, first, inputs)
        steps = run_span(at, params, first, inputs, shape, "auto")
        _, local, _, early = read_out(model, params, steps, targets, length)
        local, before = join_early(local, early)
        residuals, pull = step_partials(model).pull_over(params, steps)

        def pull_span(later, *, linear=False):
            seen, own = jax.tree.map(jnp.zeros_like, (local, before)) if linear else (local, before)
            kept, earlier = sequential_adjoint(lambda *step: (pull(*step), step[1]), residuals, seen, later)
            return kept, earlier if own is None else jax.tree.map(jnp.add, earlier, own)

        later, agrees = find_later(at, shape, first, adjoint, lambda later, **linear: pull_span(later, **linear)[1])
        kept, earlier = pull_span(later)
        return jnp.where(agrees(earlier), flatten_steps(kept), jnp.nan)

    arguments = PartitionSpec(), at.states, at.data, at.data
    first = start_of(model, params, initial)
    found = on_devices(on_one, mesh, arguments, cut(0, time))(params, first, inputs, targets)
    require_finite_gradient(model, problem, found)
    return found


def _share_of_memory(mesh: Mesh) -> int:
    """Host devices share the host's memory."""
    devices = [device for device in mesh.devices.flat if device.process_index == jax.process_index()]
    return max(1, default_memory() // (len(devices) if jax.default_backend() == "cpu" else 1))
