"""Derivations and gradients of the built-in cells by hand, in NumPy, right or with one slip planted."""

from typing import NamedTuple

import jax
import numpy as np

from jaxbptt import cells
from jaxbptt.derivations import Derivation
from tests import cases

N, M, O, T = 3, 2, 2, 6
NUM_GATES = {"elman": 1, "gru": 3, "lstm": 5}  # nonlinearities, in the order a; r, z, n; i, f, g, o, tanh(C)
TANHS = {"elman": (0,), "gru": (2,), "lstm": (2, 4)}
# What multiplies: of i; of g; of C_{t−1}; of tanh(C); of o.   Of n; of 1 − z; of h_{t−1}; of U_n h.  "z1" is 1 − z.
FACTORS = {"lstm": ("g", "i", "f", "o", "tanh"), "gru": ("z1", "n", "z", "r")}


class Knobs(NamedTuple):
    """What is wrong in a hand derivation; the defaults are right."""

    missing: tuple = ()  # nonlinearities whose φ' is taken for 1
    factor: tuple = (1, 1, 1, 1, 1)  # of each nonlinearity's φ'
    carry: float = 1  # factor of the path past the gates
    late: bool = False  # h_t for h_{t−1} in the weights' outer product
    lagged: bool = False  # 1 − h_{t−1}² for 1 − h_t²
    turned: bool = False  # W for Wᵀ
    activated: tuple = ()  # nonlinearities whose φ' is taken at φ(a)
    squared: tuple = ()  # tanhs whose φ' is (1 − y)²
    swapped: tuple = ()  # (factor, gate): whose value stands for the right one in that factor, see FACTORS
    rows: tuple = ()  # two gates whose rows are exchanged in every leaf


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


RIGHT = Knobs()


def hand_pull(name, knobs=RIGHT):
    """The pullback of a built-in cell by hand: (params, flat state, x, flat cotangent) -> (leaves, flat state, x)."""

    def slope(k, y):
        of_tanh = k in TANHS[name]
        if k in knobs.missing:
            return np.ones_like(y)
        if k in knobs.squared:
            return (1 - y) ** 2
        y = y if k not in knobs.activated else np.tanh(y) if of_tanh else sigmoid(y)
        return (1 - y**2 if of_tanh else y * (1 - y)) * y.dtype.type(knobs.factor[k])

    def factors(values):
        """What stands in each factor's place."""
        return [values[dict(knobs.swapped).get(k, own)] for k, own in enumerate(FACTORS[name])]

    def pull(params, h, x, cotangent):
        w_hx, w_hh = params[0], params[1]
        if name == "elman":
            new = np.tanh(w_hx @ x + w_hh @ h + params[2])
            of_x = of_h = slope(0, h if knobs.lagged else new) * cotangent
            carry, read, now = 0 * h, h, new
        elif name == "gru":
            u, v = np.split(w_hx @ x + params[2], 3), np.split(w_hh @ h + params[3], 3)
            r, z = sigmoid(u[0] + v[0]), sigmoid(u[1] + v[1])
            n = np.tanh(u[2] + r * v[2])
            by_n, by_z1, by_h, by_v = factors({"r": r, "z": z, "n": n, "z1": 1 - z})
            d_n = slope(2, n) * by_n * cotangent
            d_r, d_z = slope(0, r) * v[2] * d_n, slope(1, z) * (h - by_z1) * cotangent
            of_x, of_h = np.concatenate((d_r, d_z, d_n)), np.concatenate((d_r, d_z, d_n * by_v))
            carry, read, now = by_h * cotangent, h, (1 - z) * n + z * h
        else:
            old, hidden = np.split(h, 2)
            a = np.split(w_hx @ x + w_hh @ hidden + params[2], 4)
            i, f, g, o = sigmoid(a[0]), sigmoid(a[1]), np.tanh(a[2]), sigmoid(a[3])
            tanh = np.tanh(f * old + i * g)
            of_cell, of_hidden = np.split(cotangent, 2)
            by_i, by_g, by_old, by_tanh, by_o = factors({"i": i, "f": f, "g": g, "o": o, "tanh": tanh})
            of_cell = of_cell + by_tanh * slope(4, tanh) * of_hidden
            gates = (
                by_i * slope(0, i) * of_cell,
                old * slope(1, f) * of_cell,
                by_g * slope(2, g) * of_cell,
                by_o * slope(3, o) * of_hidden,
            )
            of_x = of_h = np.concatenate(gates)
            carry, read, now = by_old * of_cell, hidden, o * tanh
        carry = carry * carry.dtype.type(knobs.carry)
        leaves = [np.outer(of_x, x), np.outer(of_h, now if knobs.late else read), of_x]
        leaves = [exchange_rows(leaf, len(read), *knobs.rows) if knobs.rows else leaf for leaf in leaves]
        turned = w_hh.reshape(-1, len(read), len(read)).swapaxes(1, 2).reshape(w_hh.shape) if knobs.turned else w_hh
        back = of_h @ turned
        state = np.concatenate((carry, back)) if name == "lstm" else carry + back
        bias = exchange_rows(of_h, len(read), *knobs.rows) if knobs.rows else of_h
        return leaves + [bias] * (name == "gru"), state, of_x @ w_hx

    return pull


def exchange_rows(leaf, size, first, second):
    """Two gates' blocks of rows exchanged."""
    blocks = np.split(leaf, len(leaf) // size)
    blocks[first], blocks[second] = blocks[second], blocks[first]
    return np.concatenate(blocks)


def swap_gates(name, random):
    """(knobs with two gates exchanged, the pieces that are wrong; None: all)."""
    places = FACTORS[name]
    if random.random() < 0.3:
        blocks = tuple(int(k) for k in random.choice(NUM_GATES[name] - (name == "lstm"), 2, replace=False))
        return Knobs(rows=blocks), [f"params.{leaf}" for leaf in leaf_names(name)]
    first, second = (str(gate) for gate in random.choice(places, 2, replace=False))
    other = {first: second, second: first} if random.random() < 0.5 else {first: second}
    swapped = tuple((k, other[own]) for k, own in enumerate(places) if own in other)
    of_state = ["state_jacobian", "previous_state"]
    if {k for k, _ in swapped} <= {2}:
        return Knobs(swapped=swapped), of_state
    hidden_alone = name == "gru" and {k for k, _ in swapped} <= {2, 3}
    return Knobs(swapped=swapped), [*of_state, "params.w_hh", "params.b_h"] if hidden_alone else None


def leaf_names(name):
    return ["w_hx", "w_hh", *(["b_x", "b_h"] if name == "gru" else ["b_h"])]


def hand_jacobian(pull, params, h, x):
    return np.stack([pull(params, h, x, row)[1] for row in np.eye(len(h), dtype=h.dtype)])


def flat(tree):
    return np.concatenate([np.asarray(leaf).ravel() for leaf in jax.tree.leaves(tree)])


def planted(name, slip, random):
    """(a derivation with one slip in one or all of the pieces it can be in, those pieces)."""
    size = NUM_GATES[name]
    gates = tuple(random.permutation(size)[: random.integers(1, size + 1)])
    weights = leaf_names(name)
    pieces = ["state_jacobian", *(f"params.{leaf}" for leaf in weights), "previous_state", "input"]
    knobs, scale, after = Knobs(), 1, None
    if slip == "missing_activation_derivative":
        knobs = Knobs(missing=gates)
    elif slip == "activated_value":
        knobs = Knobs(activated=gates)
    elif slip == "squared_complement":
        knobs = Knobs(squared=TANHS[name][: random.integers(1, len(TANHS[name]) + 1)])
    elif slip == "swapped_gates":
        knobs, only = swap_gates(name, random)
        pieces = only or pieces
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
    "activated_value": ANY,
    "squared_complement": ANY,
    "swapped_gates": GATED,
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
