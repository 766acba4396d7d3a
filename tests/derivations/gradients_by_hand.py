"""Whole gradients of the built-in cells by hand, in NumPy, right or with one slip planted."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.derivations.by_hand import NUM_GATES, TANHS, Knobs, T, flat, hand_jacobian, hand_pull, swap_gates


def clip(vector, bound, by_norm):
    """Elementwise, or by the norm."""
    kind = vector.dtype.type
    if by_norm:
        return vector * kind(min(1, bound / max(np.linalg.norm(vector), 1e-30)))
    return np.clip(vector, -kind(bound), kind(bound))


def hand_gradient(name, slip, random):
    """(model, params, inputs, targets) -> grads by a plain loop over t, with one slip, in a form picked at random."""
    size = NUM_GATES[name]
    gates = tuple(random.permutation(size)[: random.integers(1, size + 1)])
    form, where, leaf_number = random.integers(3), random.integers(3), random.integers(10)
    wrong = Knobs()
    if slip == "missing_activation_derivative":
        wrong = Knobs(missing=gates)
    elif slip == "dropped_gate_path":
        dropped = set(gates[: size - 1])
        if {3, 4} <= dropped:  # without o and tanh(C) no loss reaches an earlier step: that is last_term_only
            dropped -= {4}
        wrong = Knobs(factor=tuple(0 if k in dropped else 1 for k in range(5)))
    elif slip == "double_path" and size > 1 and form:
        wrong = Knobs(factor=tuple(2 if k == gates[0] else 1 for k in range(5)))
    elif slip == "wrong_time_index" and form:
        wrong, where = Knobs(late=True), 2
    elif slip == "activated_value":
        wrong = Knobs(activated=gates)
    elif slip == "squared_complement":
        wrong = Knobs(squared=TANHS[name][: random.integers(1, len(TANHS[name]) + 1)])
    elif slip == "swapped_gates":
        wrong = swap_gates(name, random)[0]
        where = 0 if wrong.swapped else 2
    cut, bound = random.integers(2, T), 10 ** random.uniform(-2.5, -1.5)
    clipped = slip == "clipped_adjoint"
    sign = -1 if slip == "pair" else 1
    of_step = hand_pull(name, wrong if where != 2 else Knobs())
    of_params = hand_pull(name, wrong if where != 1 else Knobs())

    def gradient(model, params, inputs, targets):
        shared = not hasattr(params, "readout")
        theta = [np.asarray(leaf) for leaf in (params if shared else params.cell)]
        xs, ys, length = np.asarray(inputs), np.asarray(targets), len(inputs)
        h = flat(model.initial_state(params))
        kind = h.dtype.type
        weight = kind(1 / length if model.reduction == "mean" else 1)
        hs, jacobians, cs = [h], [], []
        direct = [np.zeros_like(leaf) for leaf in jax.tree.leaves(params)]
        for x, y in zip(xs, ys, strict=True):
            jacobians.append(hand_jacobian(of_step, theta, h, x))
            state = jax.tree.unflatten(
                jax.tree.structure(model.initial_state(params)), np.split(h, 1 + (name == "lstm"))
            )
            h = flat(model.step(params, jax.tree.map(jnp.asarray, state), jnp.asarray(x)))
            hs.append(h)
            read = h[-len(h) // (1 + (name == "lstm")) :]
            last = slip == "last_term_only" and form == 0 and len(cs) < length - 1
            if shared:
                a = theta[1] @ h
                error = (np.sin(a) - y) * np.cos(a) * weight
                direct[1] = direct[1] + np.outer(error, h)
                cs.append(error @ theta[1])
            else:
                w_yh = np.asarray(params.readout.w_yh)
                error = (w_yh @ read + np.asarray(params.readout.b_y) - y) * weight * kind(not last)
                direct[-2], direct[-1] = direct[-2] + np.outer(error, read), direct[-1] + error
                cs.append(np.concatenate((np.zeros(len(h) - len(read), h.dtype), error @ w_yh)))
        adjoints, later = [], np.zeros_like(h)
        for t in reversed(range(length)):
            if slip in ("truncated", "pair") and form < 2 and (t + 1 if form else t + 1 - length) % cut == 0:
                later = np.zeros_like(h)  # windows of `cut` steps, from the start or from the end
            adjoint = cs[t] + clip(later, bound, where) if clipped and form == 1 else cs[t] + later
            adjoint = clip(adjoint, bound, where) if clipped and form != 1 else adjoint
            adjoints.insert(0, adjoint)
            matrix = jacobians[max(t - 1, 0) if slip == "wrong_time_index" and not form else t]
            later = matrix @ adjoint if slip == "transposed_jacobian" else adjoint @ matrix
        if slip == "reversed_product":
            for k in range(length):
                total, matrix = np.zeros_like(h), np.eye(len(h), dtype=h.dtype)
                for t in range(k, length):
                    matrix = matrix @ jacobians[t] if t > k else matrix
                    total = total + cs[t] @ matrix
                adjoints[k] = total
        if slip in ("truncated", "pair") and form == 2 and where:
            adjoints = []
            for k in range(length):  # each loss carried back over its last `cut` steps
                total = np.zeros_like(h)
                for t in reversed(range(k, min(k + cut, length))):
                    total = cs[t] + total @ jacobians[t + 1] if t + 1 < min(k + cut, length) else cs[t]
                adjoints.append(total)
        elif slip in ("truncated", "pair") and form == 2:
            adjoints = [0 * a if t < length - cut else a for t, a in enumerate(adjoints)]
        if slip == "last_term_only" and form == 1:
            adjoints = cs
        if slip == "last_term_only" and form == 2:
            adjoints = [0 * a for a in adjoints[:-1]] + adjoints[-1:]
        if slip == "double_path" and (size == 1 or not form):
            again, later = [], np.zeros_like(h)
            for t in reversed(range(length)):
                again.insert(0, adjoints[t] + later)
                later = again[0] @ jacobians[t]
            adjoints = again
        grads = [0 * leaf if slip == "missing_direct_term" else leaf for leaf in direct]
        for t in range(length):
            for k, leaf in enumerate(of_params(theta, hs[t], xs[t], adjoints[t])[0]):
                grads[k] = grads[k] + leaf
        scale = {"lost_mean": length, "double_mean": 1 / length}.get(slip, 1)
        grads = [leaf * kind(scale * sign) for leaf in grads]
        if slip in ("sign", "half", "double"):
            k = leaf_number % len(grads)
            grads[k] = grads[k] * kind({"sign": -1, "half": 0.5, "double": 2}[slip])
        grads = jax.tree.unflatten(jax.tree.structure(params), grads)
        return (0.0, grads) if form == 1 else grads

    return gradient
