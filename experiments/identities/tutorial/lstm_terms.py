"""The terms of the LSTM's ∂C_t/∂C_{t−1}, and its product over steps."""

import functools

import jax
import jax.numpy as jnp

from experiments.identities.identity import Claim, identity
from jaxbptt import cells, jacobians, trajectories

from .lstm_gates import OUTPUT, all_gates, blocks, by_blocks, drawn, parts, scalar, slope_of_tanh


@functools.partial(jax.jit, static_argnums=0)
def _last_cell_in_first(model, params, inputs, cell, output):
    def last(cell):
        initial = cells.LSTMState(cell, output * jnp.tanh(cell))
        return trajectories.unroll(model, params, inputs, initial=initial).states.cell[-1]

    return jax.jacfwd(last)(cell)


@functools.partial(jax.jit, static_argnums=0)
def _forward_jacobians(model, params, inputs, targets, initial):
    trajectory = trajectories.unroll(model, params, inputs, initial=initial)
    return jacobians.step_jacobians(model, params, trajectory, method="forward")


@identity(
    "S4.26",
    "holds",
    r"\frac{\partial C_t}{\partial C_{t-1}}=\frac{\partial f_t}{\partial C_{t-1}}\odot C_{t-1}"
    r"+f_t\cdot\frac{\partial C_{t-1}}{\partial C_{t-1}}+\frac{\partial i_t}{\partial C_{t-1}}\odot\tilde{C}_t"
    r"+i_t\odot\frac{\partial\tilde{C}_t}{\partial C_{t-1}}",
    "the product rule gives four terms; ⊙ scales the rows of a derivative, f_t stands for diag(f_t)",
    general=drawn,
    smallest=[scalar()],
)
def four_terms(problem, output):
    own, cell = parts(problem, output), problem.initial.cell
    (i, f, candidate, _), (of_i, of_f, of_candidate, _) = own.gates, own.in_cell
    written = cell[:, None] * of_f + jnp.diag(f) + candidate[:, None] * of_i + i[:, None] * of_candidate
    return Claim((written, written), (own.through, by_blocks(problem, output)))


@identity(
    "S4.27",
    "holds",
    r"\frac{\partial f_t}{\partial C_{t-1}}=\frac{\partial f_t}{\partial h_{t-1}}\cdot"
    r"\frac{\partial h_{t-1}}{\partial C_{t-1}},\ \mathrm{and\ so\ for}\ i_t,\,\tilde{C}_t",
    "each gate depends on C_{t−1} through h_{t−1} alone, and with o_{t−1} frozen "
    "∂h_{t−1}/∂C_{t−1} = diag(o_{t−1} ⊙ tanh'(C_{t−1}))",
    general=drawn,
    smallest=[scalar()],
)
def gates_through_hidden(problem, output):
    own, cell = parts(problem, output), problem.initial.cell
    chained = [each * output * slope_of_tanh(cell) for each in own.in_hidden]
    i, f, candidate, _ = own.gates
    four = cell[:, None] * chained[1] + jnp.diag(f) + candidate[:, None] * chained[0] + i[:, None] * chained[2]
    return Claim((chained, four), (list(own.in_cell), own.through))


def four_by_hand(problem, w_c, delta):
    """diag(f) + [diag(C ⊙ f') W_f + diag(C̃ ⊙ i') W_i + diag(i ⊙ C̃') W_c] diag(δ) of the first step."""
    cell, (i, f, candidate, _) = problem.initial.cell, (gate[0] for gate in all_gates(problem))
    w_i, w_f, _, _ = jnp.split(problem.params.cell.w_hh, 4)
    by_hidden = (cell * f * (1 - f))[:, None] * w_f + (candidate * i * (1 - i))[:, None] * w_i
    return jnp.diag(f) + (by_hidden + (i * (1 - candidate**2))[:, None] * w_c) * delta


def mended(problem, output):
    """With W_c and δ = o_0 ⊙ tanh'(C_0)."""
    w_c = jnp.split(problem.params.cell.w_hh, 4)[2]
    return four_by_hand(problem, w_c, output * slope_of_tanh(problem.initial.cell))


@identity(
    "S4.28",
    "fails",
    r"\sigma^{\prime}W_f\left[\frac{\partial C_{t-1}}{\partial C_{t-1}}\odot C_{t-1}+\tanh^{\prime}\right]\odot C_{t-1}"
    r"+\sigma^{\prime}W_i\left[\frac{\partial C_{t-1}}{\partial C_{t-1}}\odot\tilde{C}_t+\tanh^{\prime}\right]"
    r"\odot\tilde{C}_t+i_t\odot\tanh^{\prime}\left[\frac{\partial C_{t-1}}{\partial C_{t-1}}\odot C_{t-1}"
    r"+\tanh^{\prime}\right]",
    "∂h_{t−1}/∂C_{t−1} is the bracket C_{t−1} + tanh'(C_{t−1}), with C̃_t in the second line",
    correct="the bracket is o_{t−1} ⊙ tanh'(C_{t−1}) in every line, W_c stands in the third, and f_t is added",
    correct_latex=r"\frac{\partial C_t}{\partial C_{t-1}}=\sigma^{\prime}W_f\,\delta\odot C_{t-1}"
    r"+f_t+\sigma^{\prime}W_i\,\delta\odot\tilde{C}_t+i_t\odot\tanh^{\prime}W_c\,\delta,"
    r"\quad\delta=\frac{\partial C_{t-1}}{\partial C_{t-1}}\odot o_{t-1}\odot\tanh^{\prime}(C_{t-1})",
    general=drawn,
    smallest=[scalar()],
    counterexample="one unit, C = 1, o = ½, weights 1: written 1.143, true .771",
)
def wrong_brackets(problem, output):
    own, cell = parts(problem, output), problem.initial.cell
    (i, f, candidate, _), slope = own.gates, slope_of_tanh(cell)
    w_i, w_f, _, _ = jnp.split(problem.params.cell.w_hh, 4)
    written = (cell * f * (1 - f))[:, None] * w_f * (cell + slope)
    written += (candidate * i * (1 - i))[:, None] * w_i * (candidate + slope)
    written += jnp.diag(i * (1 - candidate**2) * (cell + slope))
    return Claim(written, own.through, mended(problem, output))


@identity(
    "S4.29",
    "fails",
    r"\frac{\partial C_t}{\partial C_{t-1}}=\sigma^{\prime}W_f\,\delta\odot C_{t-1}+f_t"
    r"+\sigma^{\prime}W_i\,\delta\odot\tilde{C}_t+i_t\odot\tanh^{\prime}(\cdot)\,\delta,\quad"
    r"\delta=\frac{\partial C_{t-1}}{\partial C_{t-1}}\odot C_{t-1}+\tanh^{\prime}(\cdot)",
    "∂C_t/∂C_{t−1} by the four terms with δ = C_{t−1} + tanh'(C_{t−1}), the last without its W_c",
    correct="δ = o_{t−1} ⊙ tanh'(C_{t−1}), and W_c before the last δ",
    correct_latex=r"\frac{\partial C_t}{\partial C_{t-1}}=\sigma^{\prime}W_f\,\delta\odot C_{t-1}"
    r"+f_t+\sigma^{\prime}W_i\,\delta\odot\tilde{C}_t+i_t\odot\tanh^{\prime}(\cdot)\,W_c\,\delta,"
    r"\quad\delta=\frac{\partial C_{t-1}}{\partial C_{t-1}}\odot o_{t-1}\odot\tanh^{\prime}(C_{t-1})",
    general=drawn,
    smallest=[scalar(), scalar(cell=10.0)],
    counterexample="one unit, o = ½, weights 1: C = 1: written 1.793, true .771; C = 10: 30.1, true .622",
)
def wrong_delta(problem, output):
    cell = problem.initial.cell
    written = four_by_hand(problem, jnp.eye(len(cell)), cell + slope_of_tanh(cell))
    return Claim(written, parts(problem, output).through, mended(problem, output))


def _state_jacobian(i, f, candidate, o, before, cell, w_hh):
    """[[diag f, B], [diag(τ f), diag(tanh(C) o') W_o + diag(τ) B]] of one step, τ = o ⊙ tanh'(C)."""
    w_i, w_f, w_c, w_o = jnp.split(w_hh, 4)
    b = jnp.diag(before * f * (1 - f)) @ w_f + jnp.diag(candidate * i * (1 - i)) @ w_i
    b += jnp.diag(i * (1 - candidate**2)) @ w_c
    tau = o * slope_of_tanh(cell)
    of_output = jnp.diag(jnp.tanh(cell) * o * (1 - o)) @ w_o
    return jnp.block([[jnp.diag(f), b], [jnp.diag(tau * f), of_output + jnp.diag(tau) @ b]])


@identity(
    "S4.31",
    "holds",
    r"\frac{\partial(C_t,h_t)}{\partial(C_{t-1},h_{t-1})}:\ \frac{\partial C_t}{\partial C_{t-1}}=\mathrm{diag}(f_t),\ "
    r"\frac{\partial C_t}{\partial h_{t-1}}=B_t,\ "
    r"\frac{\partial h_t}{\partial C_{t-1}}=\mathrm{diag}(\tau_t\odot f_t),\ "
    r"\frac{\partial h_t}{\partial h_{t-1}}=\mathrm{diag}(\tanh(C_t)\odot o_t^{\prime})W_o+\mathrm{diag}(\tau_t)B_t",
    "the state Jacobian of the LSTM in four blocks, τ_t = o_t ⊙ tanh'(C_t)",
    general=drawn,
    smallest=[scalar()],
)
def state_jacobian(problem, output):
    cell, before = problem.trajectory.states.cell, problem.trajectory.previous.cell
    by_hand = jax.vmap(_state_jacobian, (0,) * 6 + (None,))
    written = by_hand(*all_gates(problem), before, cell, problem.params.cell.w_hh)
    return Claim((written, problem.jacobians), (_forward_jacobians(*problem),) * 2)


@identity(
    "S4.32",
    "fails",
    r"\frac{\partial C_T}{\partial C_0}=\prod_{t=1}^{T}\frac{\partial C_t}{\partial C_{t-1}}",
    "over many steps the gradient of the cell state is the product of the ∂C_t/∂C_{t−1}, each through h_{t−1}",
    correct="the product of the (C, h) Jacobians: C_{t−2} reaches h_{t−1} by o_{t−1} as well, without passing C_{t−1}; "
    "equal if W_o = 0 or T = 1",
    correct_latex=r"\frac{\partial C_T}{\partial C_0}=P_{CC}+P_{Ch}\,\mathrm{diag}(o_0\odot\tanh^{\prime}(C_0)),"
    r"\quad P=\prod_{t=1}^{T}\frac{\partial(C_t,h_t)}{\partial(C_{t-1},h_{t-1})}",
    general=drawn,
    smallest=[scalar(), scalar((1.0, 1.0, 1.0, 5.0))],
    counterexample="one unit, C_0 = 1, o_0 = ½, weights 1, T = 2: written .6632, true .6903; W_o = 5: .7809, .8421",
)
def product_of_cell_derivatives(problem, output):
    cell = problem.params.cell
    without = cell._replace(w_hh=cell.w_hh.at[OUTPUT * len(output) :].set(0))  # W_o = 0
    both = problem, problem._replace(params=problem.params._replace(cell=without))
    (written, truth, corrected), (equal, other, _) = (_last_cell_by_routes(each, output) for each in both)
    return Claim((written, equal), (truth, other), (corrected, equal))


def _last_cell_by_routes(problem, output):
    """∂C_T/∂C_0 as the product of the ∂C_t/∂C_{t−1}, by autodiff and from the product of state Jacobians."""
    outputs = jnp.concatenate((output[None], all_gates(problem)[OUTPUT][:-1]))
    bracket = outputs * slope_of_tanh(problem.trajectory.previous.cell)
    own, by_hidden = blocks(problem.jacobians)
    each, last = own + by_hidden * bracket[:, None, :], problem.length
    from_start, from_hidden = blocks(problem.product(0, last))
    truth = _last_cell_in_first(problem.model, problem.params, problem.inputs, problem.initial.cell, output)
    return jacobians.product(each, 0, last), truth, from_start + from_hidden * bracket[0]
