"""Derivations and gradients of the built-in cells by hand, in NumPy, right or with one slip planted."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxbptt import cells
from jaxbptt.derivations import Derivation
from tests import cases

N, M, O, T = 3, 2, 2, 6
NUM_GATES = {"elman": 1, "gru": 3, "lstm": 5}  # nonlinearities, in the order a; r, z, n; i, f, g, o, tanh(C)


class Knobs(NamedTuple):
    """What is wrong in a hand derivation; the defaults are right."""

    missing: tuple = ()  # nonlinearities whose φ' is taken for 1
    factor: tuple = (1, 1, 1, 1, 1)  # of each nonlinearity's φ'
    carry: float = 1  # factor of the path past the gates
    late: bool = False  # h_t for h_{t−1} in the weights' outer product
    lagged: bool = False  # 1 − h_{t−1}² for 1 − h_t²
    turned: bool = False  # W for Wᵀ


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


RIGHT = Knobs()


def hand_pull(name, knobs=RIGHT):
    """The pullback of a built-in cell by hand: (params, flat state, x, flat cotangent) -> (leaves, flat state, x)."""

    def slope(k, value):
        return np.ones_like(value) if k in knobs.missing else value * value.dtype.type(knobs.factor[k])

    def pull(params, h, x, cotangent):
        w_hx, w_hh = params[0], params[1]
        if name == "elman":
            new = np.tanh(w_hx @ x + w_hh @ h + params[2])
            of_x = of_h = slope(0, 1 - (h if knobs.lagged else new) ** 2) * cotangent
            carry, read, now = 0 * h, h, new
        elif name == "gru":
            u, v = np.split(w_hx @ x + params[2], 3), np.split(w_hh @ h + params[3], 3)
            r, z = sigmoid(u[0] + v[0]), sigmoid(u[1] + v[1])
            n = np.tanh(u[2] + r * v[2])
            d_n = slope(2, 1 - n**2) * (1 - z) * cotangent
            d_r, d_z = slope(0, r * (1 - r)) * v[2] * d_n, slope(1, z * (1 - z)) * (h - n) * cotangent
            of_x, of_h = np.concatenate((d_r, d_z, d_n)), np.concatenate((d_r, d_z, d_n * r))
            carry, read, now = z * cotangent, h, (1 - z) * n + z * h
        else:
            old, hidden = np.split(h, 2)
            a = np.split(w_hx @ x + w_hh @ hidden + params[2], 4)
            i, f, g, o = sigmoid(a[0]), sigmoid(a[1]), np.tanh(a[2]), sigmoid(a[3])
            tanh = np.tanh(f * old + i * g)
            of_cell, of_hidden = np.split(cotangent, 2)
            of_cell = of_cell + o * slope(4, 1 - tanh**2) * of_hidden
            gates = (
                g * slope(0, i * (1 - i)) * of_cell,
                old * slope(1, f * (1 - f)) * of_cell,
                i * slope(2, 1 - g**2) * of_cell,
                tanh * slope(3, o * (1 - o)) * of_hidden,
            )
            of_x = of_h = np.concatenate(gates)
            carry, read, now = f * of_cell, hidden, o * tanh
        carry = carry * carry.dtype.type(knobs.carry)
        leaves = [np.outer(of_x, x), np.outer(of_h, now if knobs.late else read), of_x]
        turned = w_hh.reshape(-1, len(read), len(read)).swapaxes(1, 2).reshape(w_hh.shape) if knobs.turned else w_hh
        back = of_h @ turned
        state = np.concatenate((carry, back)) if name == "lstm" else carry + back
        return leaves + [of_h] * (name == "gru"), state, of_x @ w_hx

    return pull


def hand_jacobian(pull, params, h, x):
    return np.stack([pull(params, h, x, row)[1] for row in np.eye(len(h), dtype=h.dtype)])


def flat(tree):
    return np.concatenate([np.asarray(leaf).ravel() for leaf in jax.tree.leaves(tree)])


def planted(name, slip, random):
    """(a derivation with one slip in one or all of the pieces it can be in, those pieces)."""
    size = NUM_GATES[name]
    gates = tuple(random.permutation(size)[: random.integers(1, size + 1)])
    weights = ["w_hx", "w_hh", *(["b_x", "b_h"] if name == "gru" else ["b_h"])]
    pieces = ["state_jacobian", *(f"params.{leaf}" for leaf in weights), "previous_state", "input"]
    knobs, scale, after = Knobs(), 1, None
    if slip == "missing_activation_derivative":
        knobs = Knobs(missing=gates)
    elif slip in ("dropped_gate_path", "double_path"):
        one = gates[:1] if slip == "double_path" else gates[: size - 1]
        value = 0 if slip == "dropped_gate_path" else 2
        knobs = Knobs(factor=tuple(value if k in one else 1 for k in range(5)))
        if random.random() < 0.3:
            knobs, pieces = Knobs(carry=value), ["state_jacobian", "previous_state"]
    elif slip == "wrong_time_index":
        if name == "elman" and random.random() < 0.5:
            knobs = Knobs(lagged=True)
        else:
            knobs, pieces = Knobs(late=True), ["params.w_hh"]
    elif slip in ("transposed_jacobian", "reversed_product"):
        pieces = ["state_jacobian", "previous_state"]
        if slip == "transposed_jacobian" and random.random() < 0.4:
            knobs = Knobs(turned=True)
        else:
            after = slip
    else:
        scale = {"sign": -1, "half": 0.5, "double": 2}[slip]
    if random.random() < 0.5:
        pieces = [str(random.choice(pieces))]
    right, wrong = hand_pull(name), hand_pull(name, knobs)
    plain = hand_pull(name, Knobs(missing=(0,)))

    def jacobian(params, h, x):
        matrix = hand_jacobian(wrong, params, h, x)
        if after == "transposed_jacobian":
            return matrix.T
        if after == "reversed_product":
            w_hh = hand_jacobian(plain, params, h, x)
            return w_hh * (matrix[:, :1] / w_hh[:, :1]).T
        return matrix * h.dtype.type(scale)

    def state_jacobian(params, state, x):
        params, h, x = [np.asarray(leaf) for leaf in params], flat(state), np.asarray(x)
        return jacobian(params, h, x) if "state_jacobian" in pieces else hand_jacobian(right, params, h, x)

    def pullback(params, state, x, cotangent):
        arguments = [np.asarray(leaf) for leaf in params], flat(state), np.asarray(x), flat(cotangent)
        (leaves, of_h, of_x), (bad, bad_h, bad_x) = right(*arguments), wrong(*arguments)
        bad_h = arguments[3] @ jacobian(*arguments[:3]) if after else bad_h * of_h.dtype.type(scale)
        chosen = [
            b * of_h.dtype.type(scale) if f"params.{leaf}" in pieces else a
            for a, b, leaf in zip(leaves, bad, weights, strict=True)
        ]
        of_h = bad_h if "previous_state" in pieces else of_h
        of_x = bad_x * of_h.dtype.type(scale) if "input" in pieces else of_x
        state = cells.LSTMState(*np.split(of_h, 2)) if name == "lstm" else of_h
        return type(params)(*chosen), state, of_x

    return Derivation(state_jacobian, pullback), pieces


GATED, ANY = ("gru", "lstm"), ("elman", "gru", "lstm")
LOCAL = {
    "missing_activation_derivative": ANY,
    "transposed_jacobian": ANY,
    "reversed_product": ("elman",),
    "wrong_time_index": ANY,
    "double_path": GATED,
    "dropped_gate_path": GATED,
    "sign": ANY,
    "half": ANY,
    "double": ANY,
}


def make(name, size=N, **options):
    return getattr(cells, name)(M, size, **options)


def drawn(cell, key, dtype, gain=1.0):
    params, inputs, _, _ = cases.instance(cell, key, length=T, gain=gain)
    return jax.tree.map(lambda leaf: leaf.astype(dtype), (params, inputs))


def hand_gradient(name, slip, random):
    """(model, params, inputs, targets) -> grads by a plain loop over t, with one slip, in a form picked at random."""
    size = NUM_GATES[name]
    gates = tuple(random.permutation(size)[: random.integers(1, size + 1)])
    form, where, leaf_number = random.integers(3), random.integers(3), random.integers(10)
    wrong = Knobs()
    if slip == "missing_activation_derivative":
        wrong = Knobs(missing=gates)
    elif slip == "dropped_gate_path":
        wrong = Knobs(factor=tuple(0 if k in gates[: size - 1] else 1 for k in range(5)))
    elif slip == "double_path" and size > 1 and form:
        wrong = Knobs(factor=tuple(2 if k == gates[0] else 1 for k in range(5)))
    elif slip == "wrong_time_index" and form:
        wrong, where = Knobs(late=True), 2
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
            adjoint = cs[t] + later
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
        grads = [leaf * kind(scale) for leaf in grads]
        if slip in ("sign", "half", "double"):
            k = leaf_number % len(grads)
            grads[k] = grads[k] * kind({"sign": -1, "half": 0.5, "double": 2}[slip])
        grads = jax.tree.unflatten(jax.tree.structure(params), grads)
        return (0.0, grads) if form == 1 else grads

    return gradient
