"""Small forward and backward passes written by hand in NumPy, correct and as published mistakes have them."""

import numpy as np


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def zeros(*arrays):
    return [np.zeros_like(array) for array in arrays]


class Elman:
    """h_t = tanh(w_hx x_t + w_hh h_{t−1} + b); output h_1 … h_T."""

    @staticmethod
    def arguments(random, size=4, length=6):
        n, m = size, 3
        return (
            random.normal(size=(n, m)),
            random.normal(size=(n, n)) / n**0.5,
            random.normal(size=n) / 2,
            random.normal(size=(length, m)),
        )

    @staticmethod
    def forward(w_hx, w_hh, b, x):
        h, states = np.zeros_like(b), []
        for x_t in x:
            h = np.tanh(w_hx @ x_t + w_hh @ h + b)
            states.append(h)
        return np.stack(states)

    @staticmethod
    def backward(w_hx, w_hh, b, x, c, *, slope=lambda h: 1 - h**2, carried=lambda cotangent: cotangent):
        states = Elman.forward(w_hx, w_hh, b, x)
        of_hx, of_hh, of_b, of_x, carry = zeros(w_hx, w_hh, b, x, b)
        for t in reversed(range(len(x))):
            previous = states[t - 1] if t else np.zeros_like(b)
            of_a = (c[t] + carry) * slope(states[t])
            of_hx += np.outer(of_a, x[t])
            of_hh += np.outer(of_a, previous)
            of_b += of_a
            of_x[t] = w_hx.T @ of_a
            carry = carried(w_hh.T @ of_a)
        return of_hx, of_hh, of_b, of_x


class LSTM:
    """C_t = f C_{t−1} + i g, h_t = o tanh(C_t), gates i, f, g, o of w_hx x_t + w_hh h_{t−1} + b; output h_1 … h_T."""

    @staticmethod
    def arguments(random, size=3, length=5):
        n, m = size, 2
        return (
            random.normal(size=(4 * n, m)),
            random.normal(size=(4 * n, n)) / n**0.5,
            random.normal(size=4 * n),
            random.normal(size=(length, m)),
        )

    @staticmethod
    def run(w_hx, w_hh, b, x):
        h = cell = np.zeros_like(b[: len(b) // 4])
        steps = []
        for x_t in x:
            i, f, g, o = np.split(w_hx @ x_t + w_hh @ h + b, 4)
            i, f, g, o = sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)
            before = (cell, h)
            cell = f * cell + i * g
            h = o * np.tanh(cell)
            steps.append((i, f, g, o, cell, h, *before))
        return steps

    @staticmethod
    def forward(w_hx, w_hh, b, x):
        return np.stack([step[5] for step in LSTM.run(w_hx, w_hh, b, x)])

    @staticmethod
    def backward(w_hx, w_hh, b, x, c, *, swapped=False):
        of_hx, of_hh, of_b, of_x = zeros(w_hx, w_hh, b, x)
        of_h = of_cell = np.zeros_like(b[: len(b) // 4])
        for t, (i, f, g, o, cell, _, old_cell, old_h) in reversed(list(enumerate(LSTM.run(w_hx, w_hh, b, x)))):
            of_h = of_h + c[t]
            of_cell = of_cell + of_h * o * (1 - np.tanh(cell) ** 2)
            of_i, of_g = of_cell * (i if swapped else g), of_cell * i  # ∂C/∂i = g
            slopes = (of_i * i * (1 - i), of_cell * old_cell * f * (1 - f), of_g * (1 - g**2))
            of_a = np.concatenate([*slopes, of_h * np.tanh(cell) * o * (1 - o)])
            of_hx += np.outer(of_a, x[t])
            of_hh += np.outer(of_a, old_h)
            of_b += of_a
            of_x[t] = w_hx.T @ of_a
            of_h, of_cell = w_hh.T @ of_a, of_cell * f
        return of_hx, of_hh, of_b, of_x


class Delta:
    """S_t = (I − β_t k_t k_tᵀ) S_{t−1} + β_t k_t v_tᵀ, K = V; output S_1 … S_T."""

    @staticmethod
    def arguments(random, size=3, length=5):
        k, v = random.normal(size=(2, length, size))
        return k / np.linalg.norm(k, axis=1, keepdims=True), v, random.uniform(0.3, 0.9, size=length)

    @staticmethod
    def forward(k, v, beta):
        state, states = np.zeros((k.shape[1], v.shape[1]), k.dtype), []
        for k_t, v_t, beta_t in zip(k, v, beta, strict=True):
            state = state + beta_t * np.outer(k_t, v_t - state.T @ k_t)
            states.append(state)
        return np.stack(states)

    @staticmethod
    def backward(k, v, beta, c, *, on_values=False):
        states = Delta.forward(k, v, beta)
        of_k, of_v, of_beta = zeros(k, v, beta)
        carry = np.zeros_like(states[0])
        for t in reversed(range(len(k))):
            old = states[t - 1] if t else np.zeros_like(states[0])
            carry = carry + c[t]
            error, of_error = v[t] - old.T @ k[t], beta[t] * carry.T @ k[t]
            of_k[t] = beta[t] * carry @ error - old @ of_error
            of_v[t], of_beta[t] = of_error, k[t] @ carry @ error
            if on_values:  # the transition acts on the wrong side of the state
                carry = carry - beta[t] * np.outer(carry @ v[t], v[t]) / (v[t] @ v[t])
            else:
                carry = carry - np.outer(k[t], of_error)
        return of_k, of_v, of_beta


class Reflections:
    """h_t = (I − 2 k_t k_tᵀ / k_tᵀk_t) h_{t−1}; output h_T."""

    @staticmethod
    def arguments(random, size=4, length=3):
        return random.normal(size=(length, size)), random.normal(size=size)

    @staticmethod
    def forward(k, h):
        for k_t in k:
            h = h - 2 * k_t * (k_t @ h) / (k_t @ k_t)
        return h

    @staticmethod
    def backward(k, h, c, *, elementwise=False):
        states, of_k = [h], np.zeros_like(k)
        for k_t in k:
            states.append(Reflections.forward(k_t[None], states[-1]))
        for t in reversed(range(len(k))):
            k_t, old, square = k[t], states[t], k[t] @ k[t]
            along, across = k_t @ old, c @ k_t
            of_k[t] = -2 * (c * along + across * old) / square + 4 * across * along * k_t / square**2
            c = c * (1 - 2 * k_t**2 / square) if elementwise else c - 2 * k_t * across / square
        return of_k, c


class Decay:
    """h_t = a_t h_{t−1} + √(1 − a_t²) x_t, entry by entry; output h_1 … h_T; backward in blocks of `BLOCK` steps."""

    BLOCK = 4

    @staticmethod
    def arguments(random, size=3, length=9):
        return random.uniform(0.3, 0.95, size=(length, size)), random.normal(size=(length, size))

    @staticmethod
    def forward(a, x):
        h, states = np.zeros_like(x[0]), []
        for a_t, x_t in zip(a, x, strict=True):
            h = a_t * h + np.sqrt(1 - a_t**2) * x_t
            states.append(h)
        return np.stack(states)

    @staticmethod
    def backward(a, x, c, *, block_as_time=False, bound=np.inf):
        states, carry = Decay.forward(a, x), np.zeros_like(x[0])
        adjoints = np.zeros_like(x)
        for block in reversed(range(-(-len(x) // Decay.BLOCK))):
            start, stop = block * Decay.BLOCK, min((block + 1) * Decay.BLOCK, len(x))
            if stop < len(x):
                carry = a[block + 1 if block_as_time else stop] * carry
            for t in reversed(range(start, stop)):
                carry = c[t] + (a[t + 1] * carry if t + 1 < stop else carry)
                adjoints[t] = carry
        old, root = np.concatenate([np.zeros_like(states[:1]), states[:-1]]), np.sqrt(1 - a**2)
        return adjoints * (old - x * a * np.minimum(1 / root, bound)), adjoints * root


class Batch:
    """y_b = tanh(w x_b) for each sequence b of a batch."""

    @staticmethod
    def arguments(random, size=3, length=6):
        return random.normal(size=(size, size)), random.normal(size=(length, size))

    @staticmethod
    def forward(w, x):
        return np.tanh(x @ w.T)

    @staticmethod
    def backward(w, x, c, *, error=0.0, first=4):
        of_a = c * (1 - Batch.forward(w, x) ** 2)
        of_a[first:] *= of_a.dtype.type(1 + error)
        return of_a.T @ x, of_a @ w


PAIRS = {kind.__name__: kind for kind in (Elman, LSTM, Delta, Reflections, Decay, Batch)}
