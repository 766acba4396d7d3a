"""The LSTM's gates and the size of ∂C_t/∂C_{t−1}.

Three derivatives go by that name: h_{t−1} frozen; through h_{t−1} = o_{t−1} ⊙ tanh(C_{t−1}) with o_{t−1} frozen (what
the note differentiates); the C block of the product of state Jacobians (the one that composes). With biases, which the
note leaves out; the scalar cases have them zero unless said.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from experiments.identities import instances
from experiments.identities.derivatives import end_in_start
from experiments.identities.identity import Claim, identity
from experiments.identities.instances import M, N, T
from jaxbptt import cells
from jaxbptt.cells import gates

INPUT, FORGET, CANDIDATE, OUTPUT = range(4)  # the rows of the toolkit's w_hh, H each
SHUT = 800.0  # a bias that takes σ to 0.0 or 1.0 in float64
SURE = 40.0  # one that takes it to 4e-18 of them


_all_gates = jax.jit(jax.vmap(gates, (None, 0, 0)))


class Parts(NamedTuple):
    """The first step from C_0 and h_0 = o_0 ⊙ tanh(C_0); derivatives [H, H] by jacfwd."""

    gates: tuple  # i, f, C̃, o
    in_hidden: tuple  # ∂⁺ of each in h_0
    in_cell: tuple  # of each in C_0 through h_0, o_0 frozen
    frozen: jax.Array  # ∂C_1/∂C_0, h_0 frozen
    through: jax.Array  # ∂C_1/∂C_0 through h_0, o_0 frozen


@functools.partial(jax.jit, static_argnums=0)
def _parts(model, params, x, cell, output):
    hidden = lambda cell: output * jnp.tanh(cell)
    state = lambda cell, hidden: cells.LSTMState(cell, hidden)
    new_cell = lambda cell, hidden: model.step(params, state(cell, hidden), x).cell
    of_hidden = lambda hidden: gates(params.cell, state(cell, hidden), x)
    return Parts(
        of_hidden(hidden(cell)),
        jax.jacfwd(of_hidden)(hidden(cell)),
        jax.jacfwd(lambda cell: of_hidden(hidden(cell)))(cell),
        jax.jacfwd(new_cell)(cell, hidden(cell)),
        jax.jacfwd(lambda cell: new_cell(cell, hidden(cell)))(cell),
    )


def parts(problem, output):
    return _parts(problem.model, problem.params, problem.inputs[0], problem.initial.cell, output)


def all_gates(problem):
    """i, f, C̃, o at every step, [T, H] each."""
    return _all_gates(problem.params.cell, problem.trajectory.previous, problem.inputs)


def started(problem, output):
    """The same from h_0 = o_0 ⊙ tanh(C_0) with o_0 given."""
    cell = problem.initial.cell
    return {"problem": problem._replace(initial=cells.LSTMState(cell, output * jnp.tanh(cell))), "output": output}


def drawn(key):
    return started(instances.lstm_net(key), jax.nn.sigmoid(jax.random.normal(key, (N,))))


def scalar(weights=(1.0, 1.0, 1.0, 1.0), biases=(0.0, 0.0, 0.0, 0.0), cell=1.0, length=2):
    """One unit, U = 0, o_0 = ½; weights and biases in the order i, f, C̃, o."""
    problem = instances.lstm_net(jax.random.key(0), hidden=1, length=length)
    of_cell = cells.LSTMParams(jnp.zeros((4, M)), jnp.array(weights)[:, None], jnp.array(biases))
    params = problem.params._replace(cell=of_cell)
    initial = cells.LSTMState(jnp.array([cell]), jnp.zeros(1))
    return started(problem._replace(params=params, initial=initial), jnp.array([0.5]))


def biased(problem, gate, entries, value):
    """The same with `value` as bias of those entries of a gate."""
    cell = problem.params.cell
    rows = gate * len(problem.initial.cell) + jnp.asarray(entries)
    return problem._replace(params=problem.params._replace(cell=cell._replace(b_h=cell.b_h.at[rows].set(value))))


def blocks(jacobian):
    """(∂⁺C_t/∂⁺C_{t−1}, ∂⁺C_t/∂⁺h_{t−1}) of state Jacobians [..., 2H, 2H]."""
    size = jacobian.shape[-1] // 2
    return jacobian[..., :size, :size], jacobian[..., :size, size:]


def in_bias(problem, gate):
    """(∂⁺C_t/∂⁺b, ∂⁺h_t/∂⁺b) of one gate, [T, H, H] each."""
    size = len(problem.initial.cell)
    first = 4 * size * (M + size) + gate * size
    return jnp.split(problem.direct_params[..., first : first + size], 2, axis=1)


def slope_of_tanh(cell):
    return 1 - jnp.tanh(cell) ** 2


def by_blocks(problem, output):
    """diag(f) + B diag(o_0 ⊙ tanh'(C_0)) from the toolkit's state Jacobian."""
    own, by_hidden = blocks(problem.jacobians[0])
    return own + by_hidden * output * slope_of_tanh(problem.initial.cell)


diagonals = jax.vmap(jnp.diag)


@identity(
    "S4.19",
    "holds",
    r"i_t\odot\tilde{C}_t:\ \mathrm{input\ gate\ selectively\ updates\ the\ cell\ state}",
    "a new candidate reaches the cell state by i_t, unit by unit, and a closed input gate keeps it out",
    general=lambda key: {"problem": biased(instances.lstm_net(key), INPUT, [0], -SHUT)},
)
def input_gate(problem):
    i, _, candidate, _ = all_gates(problem)
    measured = in_bias(problem, CANDIDATE)[0]
    reached = jnp.ones((T, N), bool).at[:, 0].set(False)
    return Claim((diagonals(i * (1 - candidate**2)), reached), (measured, jnp.any(measured != 0, axis=2)))


@identity(
    "S4.20",
    "holds",
    r"h_t=o_t\odot\tanh(C_t):\ \mathrm{output\ is\ the\ filtered\ cell\ state}",
    "the output gate decides what of the cell state is seen, and leaves the cell state alone",
    general=lambda key: {"problem": instances.lstm_net(key)},
)
def output_gate(problem):
    o, states = all_gates(problem)[OUTPUT], problem.trajectory.states
    seen = jnp.tanh(states.cell)
    written = o * seen, [jnp.zeros((T, N, N)), diagonals(o * (1 - o) * seen)]
    return Claim(written, (states.hidden, in_bias(problem, OUTPUT)))


@identity(
    "S4.21",
    "holds",
    r"f_t\odot C_{t-1}:\ \mathrm{forget\ gate\ decides\ what\ to\ throw\ away\ or\ remember}",
    "with h_{t−1} frozen the old cell state passes by f_t, unit by unit: nothing of it at 0, all of it at 1",
    general=lambda key: {
        "problem": biased(biased(instances.lstm_net(key), FORGET, [0], -SHUT), FORGET, [1], SHUT),
    },
)
def forget_gate(problem):
    measured = blocks(problem.jacobians)[0]
    ends = jnp.tile(jnp.array([0.0, 1.0]), (T, 1))
    return Claim(
        (diagonals(all_gates(problem)[FORGET]), ends),
        (measured, jnp.diagonal(measured, axis1=1, axis2=2)[:, :2]),
    )


@identity(
    "S4.22",
    "holds",
    r"f_t,\,i_t,\,o_t=\sigma(\ldots)\ \mathrm{positive}",
    "the gates lie in (0, 1), as read back from states and Jacobians (float64 gives 0 at σ(−709), 1 at σ(37))",
    general=lambda key: {"problem": instances.lstm_net(key)},
)
def positive_gates(problem):
    i, f, candidate, o = all_gates(problem)
    states, before = problem.trajectory.states, problem.trajectory.previous
    kept = jnp.diagonal(blocks(problem.jacobians)[0], axis1=1, axis2=2)
    read_back = [(states.cell - kept * before.cell) / candidate, kept, states.hidden / jnp.tanh(states.cell)]
    inside = jnp.all((jnp.array(read_back) > 0) & (jnp.array(read_back) < 1))
    return Claim(([i, f, o], True), (read_back, inside))


def remembering(key, satisfied):
    """f_t = 1; the output gate shut as well, or open."""
    instance = drawn(key)
    problem = biased(instance["problem"], FORGET, jnp.arange(N), SURE)
    if not satisfied:
        return started(problem, instance["output"])
    return started(biased(problem, OUTPUT, jnp.arange(N), -SURE), jnp.full(N, jax.nn.sigmoid(-SURE)))


@identity(
    "S4.23",
    "conditional",
    r"\frac{\partial C_t}{\partial C_{t-1}}\approx 1",
    "the cell state hands its gradient back unchanged, with h_{t−1} frozen, through h_{t−1}, and over all steps",
    correct="with f_t ≈ 1 and a small path through h_{t−1} (output gate shut, small weights or saturated cell): it is "
    "diag(f_t) + B_t diag(o_{t−1} ⊙ tanh'(C_{t−1})) through h_{t−1}, diag(f_t) without",
    correct_latex=r"f_t\approx 1,\ B_t\,\delta_t\approx 0,"
    r"\quad\mathrm{else}\ \frac{\partial C_t}{\partial C_{t-1}}=\mathrm{diag}(f_t)+B_t\,\delta_t,\quad\delta_t="
    r"\mathrm{diag}(o_{t-1}\odot\tanh^{\prime}(C_{t-1})),\quad B_t=\frac{\partial^{+}C_t}{\partial^{+}h_{t-1}}",
    general=remembering,
    smallest=[
        scalar(),
        scalar((0.0, -40.0, 0.0, 0.0), (0.0, 20 * jnp.tanh(1.0), 0.0, 0.0)),
        scalar((0.0, 0.0, 20.0, 0.0), (4.0, 4.0, -10 * jnp.tanh(1.0), 0.0)),
    ],
    counterexample="one unit, C = 1, o = ½: weights 1: f = .594, through h .771; W_f = −40 at gates ½: −1.60; "
    "f = .982, W_c = 20: 5.11",
)
def gradient_of_the_cell_state(problem, output):
    own = parts(problem, output)
    truth = own.frozen, own.through, blocks(end_in_start(problem))[0]
    whole = blocks(problem.product(0, problem.length))[0]
    corrected = blocks(problem.jacobians[0])[0], by_blocks(problem, output), whole
    return Claim((jnp.eye(len(output)),) * 3, truth, corrected)
