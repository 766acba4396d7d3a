"""The recurrent net, forward and backward.

h_t = φ(W_hx x_t + W_hh h_{t−1}), o_t = W_yh h_t, L = 1/T Σ_t ℓ(o_t, y_t). Gradients are columns in the note, rows here.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from experiments.identities import instances
from experiments.identities.derivatives import sensitivities, via_output
from experiments.identities.identity import Claim, identity
from experiments.identities.instances import M, N, Problem, T
from jaxbptt import cells, gradients, models, spectra

LONG = 40  # steps after which growth or decay of W_hh^m is beyond doubt

log_growth = jax.jit(lambda steps: spectra.log_singular_values(steps)[-1, 0])  # ln σ_max of the product of J_t


@functools.partial(jax.jit, static_argnums=0)
def total_errors(model, params, inputs, targets, initial):
    """(dL/dh_t [T, N], dL/do_t [T, O]), total: by a change of h_t that o_t and h_{t+1} both see, and by one of o_t."""
    step = lambda params, h, x: model.step(params, h, x[0]) + x[1]
    loss = lambda output, target: model.loss(output + target[1], target[0])
    changed = model._replace(step=step, loss=loss, derivation=None, num_inputs=None)
    cost = lambda h, o: gradients.autodiff(changed, params, (inputs, h), (targets, o), initial=initial)[0]
    none = (jnp.zeros((len(inputs), size)) for size in (initial.size, params.readout.b_y.size))
    return jax.grad(cost, argnums=(0, 1))(*none)


def state_gradients(problem):
    """dL/dh_t, [T, N], total."""
    return total_errors(*problem)[0]


def output_error(problem):
    """1/T ∂ℓ/∂o_t, [T, O]."""
    return problem.weight * problem.loss_output


def error_from_output(problem):
    """W_yhᵀ ∂L/∂o_t, [T, N]."""
    return output_error(problem) @ problem.params.readout.w_yh


def slope(problem):
    """φ'(a_t), [T, N]: b_h is added to a_t and to nothing else, so ∂⁺h_t/∂⁺b_h = diag(φ'(a_t))."""
    cell = problem.params.cell
    before = cell.w_hx.size + cell.w_hh.size
    return jnp.einsum("tnn->tn", problem.direct_params[:, :, before : before + cell.b_h.size])


def by_both_routes(problem, pick):
    """A leaf of dL/dθ by autodiff through the unroll and by BPTT."""
    return tuple(pick(problem.gradient(route)[1]) for route in ("autodiff", "bptt"))


def sum_of_powers(problem, index):
    """Σ_{i=t}^T (W_hhᵀ)^{T−i} W_yhᵀ ∂L/∂o_{index(t, i)} for every t, [T, N]; an index past the end reads the last."""
    steps, local = range(1, problem.length + 1), error_from_output(problem)
    powers = [jnp.linalg.matrix_power(problem.params.cell.w_hh, problem.length - i) for i in steps]
    read = lambda s: jnp.take(local, s - 1, axis=0, mode="clip")
    return jnp.array([sum(read(index(t, i)) @ powers[i - 1] for i in steps[t - 1 :]) for t in steps])


@functools.cache
def _scalar_model(activation):
    return models.sequence_model(cells.elman(1, 1, activation=activation), 1, loss=jnp.vdot, reduction="mean")


def scalar_net(w_hh, errors, *, activation=jnp.positive, x=0.0, initial=0.0):
    """All other weights 1, the same x at every step, ∂L/∂o_t = errors[t − 1]."""
    one, zero, errors = jnp.ones((1, 1)), jnp.zeros(1), jnp.array(errors)[:, None]
    params = models.SequenceParams(cells.ElmanParams(one, w_hh * one, zero), models.Readout(one, zero))
    data = jnp.full_like(errors, x), len(errors) * errors
    return Problem(_scalar_model(activation), params, *data, jnp.full(1, initial))


def with_cell(problem, **changes):
    return problem._replace(params=problem.params._replace(cell=problem.params.cell._replace(**changes)))


def spectral_radius(problem):
    return np.max(np.abs(np.linalg.eigvals(problem.params.cell.w_hh)))


def linear_with_radius(key, radius):
    """A long linear net with ρ(W_hh) = radius."""
    problem = instances.linear_net(key, length=LONG)
    return with_cell(problem, w_hh=problem.params.cell.w_hh * (radius / spectral_radius(problem)))


def _net(key):
    return {"problem": instances.net(key)}


def _linear_alone_or_not(key, alone):
    net = instances.linear_net(key)._replace(inputs=jnp.zeros((T, M))) if alone else instances.net(key)
    return {"problem": with_cell(net, b_h=jnp.zeros(N)), "activation": jnp.positive if alone else jnp.tanh}


@identity(
    "S2.16",
    "conditional",
    r"h_{t+1}=W_{hh}\,h_t",
    "the next state is W_hh times the state",
    correct="for φ = identity and x_{t+1} = 0; else h_{t+1} = φ(W_hx x_{t+1} + W_hh h_t)",
    correct_latex=r"\varphi(a)=a,\ x_{t+1}=0,\quad\mathrm{else}\ h_{t+1}=\varphi(W_{hx}\,x_{t+1}+W_{hh}\,h_t)",
    general=_linear_alone_or_not,
    smallest=[
        {"problem": scalar_net(2.0, (1.0,), activation=jnp.tanh, initial=1.0), "activation": jnp.tanh},
        {"problem": scalar_net(2.0, (1.0,), x=1.0, initial=1.0), "activation": jnp.positive},
    ],
    counterexample="W_hh = 2, h = 1: tanh gives 0.964, φ = identity with x = 1 gives 3; written 2",
)
def linear_without_input(problem, activation):
    cell = problem.params.cell
    written = problem.previous @ cell.w_hh.T
    return Claim(written, problem.states, activation(problem.inputs @ cell.w_hx.T + written))


@identity(
    "S2.19",
    "holds",
    r"\frac{\partial L}{\partial o_t}=\frac{1}{T}\,\frac{\partial\ell(o_t,y_t)}{\partial o_t}",
    "the gradient in an output is 1/T of the derivative of that step's loss",
    general=_net,
)
def mean_loss_in_output(problem):
    return Claim(output_error(problem), total_errors(*problem)[1])


@identity(
    "S2.20",
    "holds",
    r"\frac{\partial L}{\partial W_{yh}}=\sum_{t=1}^{T}\frac{\partial L}{\partial o_t}\,h_t^{\top}",
    "the gradient of the readout weights is the sum over t of output error times state",
    general=_net,
)
def readout_weights(problem):
    written = output_error(problem).T @ problem.states
    return Claim((written,) * 2, by_both_routes(problem, lambda grads: grads.readout.w_yh))


@identity(
    "S2.21",
    "holds",
    r"\frac{\partial L}{\partial h_T}=W_{yh}^{\top}\,\frac{\partial L}{\partial o_T}",
    "the last state's gradient comes through its own output alone",
    general=_net,
)
def last_state(problem):
    return Claim((error_from_output(problem)[-1],) * 2, (state_gradients(problem)[-1], problem.adjoints[-1]))


@identity(
    "S2.22",
    "fails",
    r"\frac{\partial L}{\partial h_T}=\mathrm{Prod}\left(\frac{\partial O_T}{\partial T},"
    r"\frac{\partial h_T}{\partial T}\right)=W_{yh}^{\top}\,\frac{\partial L}{\partial O_T}",
    "the last state's gradient is the product of the derivatives of O_T and h_T in the number of steps",
    correct="T is an integer; the right-hand side is what was meant: W_yhᵀ ∂L/∂o_T, from Prod(∂L/∂o_T, ∂o_T/∂h_T)",
    correct_latex=r"\frac{\partial L}{\partial h_T}=\mathrm{Prod}\left(\frac{\partial L}{\partial O_T},"
    r"\frac{\partial O_T}{\partial h_T}\right)=W_{yh}^{\top}\,\frac{\partial L}{\partial O_T}",
    general=_net,
    smallest=[{"problem": scalar_net(2.0, (1.0, 10.0, 100.0), initial=1.0)}],
    counterexample="o = h = 2, 4, 8 and ∂L/∂o_3 = 100: differences in T give 4 · 4 = 16, true 100",
)
def derivative_in_number_of_steps(problem):
    # The nearest to a derivative in T is a difference; the outputs are summed so that the shape is that of h_T.
    outputs, states = problem.outputs, problem.states
    written = jnp.sum(outputs[-1] - outputs[-2]) * (states[-1] - states[-2])
    return Claim(written, state_gradients(problem)[-1], error_from_output(problem)[-1])


@identity(
    "S2.24",
    "holds",
    r"\frac{\partial L}{\partial h_t}=\mathrm{Prod}\left(\frac{\partial L}{\partial h_{t+1}},"
    r"\frac{\partial h_{t+1}}{\partial h_t}\right)+\mathrm{Prod}\left(\frac{\partial L}{\partial o_t},"
    r"\frac{\partial o_t}{\partial h_t}\right)",
    "a state's gradient is the error from t + 1 plus the error from t",
    general=_net,
)
def error_from_next_and_own(problem):
    from_next = jnp.einsum("tm,tmn->tn", problem.adjoints[1:], problem.jacobians[1:])
    from_own = jnp.einsum("to,ton->tn", output_error(problem), problem.output_state)[:-1]
    return Claim(from_next + from_own, state_gradients(problem)[:-1])


@identity(
    "S2.25",
    "conditional",
    r"\frac{\partial L}{\partial h_t}=W_{hh}^{\top}\,\frac{\partial L}{\partial h_{t+1}}"
    r"+W_{yh}^{\top}\,\frac{\partial L}{\partial o_t}\quad(t<T)",
    "the error from t + 1 is carried back by W_hhᵀ alone",
    correct="for φ = identity; else W_hhᵀ(φ'(a_{t+1}) ⊙ ∂L/∂h_{t+1}) + W_yhᵀ ∂L/∂o_t",
    correct_latex=r"\varphi(a)=a,"
    r"\quad\mathrm{else}\ \frac{\partial L}{\partial h_t}=W_{hh}^{\top}\left(\varphi'(a_{t+1})\odot"
    r"\frac{\partial L}{\partial h_{t+1}}\right)+W_{yh}^{\top}\,\frac{\partial L}{\partial o_t}\quad(t<T)",
    general=lambda key, satisfied: {"problem": instances.linear_net(key)} if satisfied else _net(key),
    smallest=[{"problem": scalar_net(1.0, (0.5, 0.5), activation=jnp.tanh, x=1.0)}],
    counterexample="tanh, all weights 1, x = (1, 1), L = ½ Σ o_t: ∂L/∂h_1 = 0.5557 as φ'(a_2) = 0.1114; written 1",
)
def carried_back_by_weight(problem):
    w_hh, own, later = problem.params.cell.w_hh, error_from_output(problem)[:-1], problem.adjoints[1:]
    corrected = (slope(problem)[1:] * later) @ w_hh + own
    return Claim(later @ w_hh + own, state_gradients(problem)[:-1], corrected)


@identity(
    "S2.26",
    "conditional",
    r"\frac{\partial L}{\partial h_T}\rightarrow\frac{\partial L}{\partial h_t},\quad\mathrm{gradient\ explosion}",
    "the gradients follow from the last one by recursion, and explode",
    correct="the recursion always; explosion (the last error larger at h_1 than at h_T) where J_T … J_2 enlarges it",
    correct_latex=r"\frac{\partial L}{\partial h_T}\rightarrow\frac{\partial L}{\partial h_t},"
    r"\quad\mathrm{gradient\ explosion}\ \Leftrightarrow\ \left\Vert(J_T\cdots J_2)^{\top}"
    r"\frac{\partial L}{\partial h_T}\right\Vert>\left\Vert\frac{\partial L}{\partial h_T}\right\Vert",
    general=lambda key, satisfied: {"problem": linear_with_radius(key, 1.5 if satisfied else 0.6)},
    smallest=[{"problem": scalar_net(1.5, (0.0,) * 19 + (1.0,), activation=jnp.tanh, initial=0.1)}],
    counterexample="tanh with W_hh = 1.5, h_0 = 0.1, T = 20: 8e-6 of the last error reaches h_1, though ρ(W_hh) > 1",
)
def recursion_explodes(problem):
    truth, own = state_gradients(problem), via_output(problem)[-1]
    sizes = jnp.linalg.norm(truth, axis=1, keepdims=True)  # rows of one size, lest the explosion hide the booleans
    recursive, sent = problem.adjoints / sizes, own @ problem.product(1, problem.length)
    first, *_, last = jnp.linalg.norm(sensitivities(problem)[1].state[-1], axis=1)  # dL_T/dh_t
    enlarged = jnp.linalg.norm(sent) > jnp.linalg.norm(own)
    return Claim((recursive, True), (truth / sizes, first > last), (recursive, enlarged))


@identity(
    "S2.27",
    "holds",
    r"\frac{\partial L}{\partial W_{hx}}=\sum_{t=1}^{T}"
    r"\left(\frac{\partial L}{\partial h_t}\odot\varphi'(a_t)\right)x_t^{\top}",
    "the gradient of the input weights is the sum over t of (∂L/∂h_t ⊙ φ'(a_t)) x_tᵀ, ∂L/∂h_t with its own φ'",
    general=_net,
)
def input_weights(problem):
    written = (problem.adjoints * slope(problem)).T @ problem.inputs
    return Claim((written,) * 2, by_both_routes(problem, lambda grads: grads.cell.w_hx))


@identity(
    "S2.28",
    "holds",
    r"\frac{\partial L}{\partial W_{hh}}=\sum_{t=1}^{T}"
    r"\left(\frac{\partial L}{\partial h_t}\odot\varphi'(a_t)\right)h_{t-1}^{\top}",
    "the gradient of the recurrent weights is the sum over t of (∂L/∂h_t ⊙ φ'(a_t)) h_{t−1}ᵀ, from the actual h_0 on",
    general=_net,
)
def recurrent_weights(problem):
    written = (problem.adjoints * slope(problem)).T @ problem.previous
    return Claim((written,) * 2, by_both_routes(problem, lambda grads: grads.cell.w_hh))


@identity(
    "S2.29",
    "fails",
    r"\frac{\partial L}{\partial h_t}=\sum_{i=t}^{T}(W_{hh}^{\top})^{T-i}\,W_{yh}^{\top}"
    r"\,\frac{\partial L}{\partial o_{T+i}}",
    "unrolled for φ = identity, a state's gradient sums powers of W_hhᵀ on the errors of the outputs T + i",
    correct="the output is T + t − i (S3.14), and φ = identity; T + i is past the end, where JAX reads the last entry",
    correct_latex=r"\frac{\partial L}{\partial h_t}="
    r"\sum_{i=t}^{T}(W_{hh}^{\top})^{T-i}\,W_{yh}^{\top}\,\frac{\partial L}{\partial o_{T+t-i}}\quad(\varphi(a)=a)",
    general=lambda key: {"problem": instances.linear_net(key)},
    smallest=[{"problem": scalar_net(2.0, (1.0, 10.0, 100.0), initial=1.0)}],
    counterexample="W_hh = 2, ∂L/∂o = (1, 10, 100), T = 3, t = 1: as JAX clamps the index 700, true 421",
)
def index_past_the_end(problem):
    end = problem.length
    corrected = sum_of_powers(problem, lambda t, i: end + t - i)
    return Claim(sum_of_powers(problem, lambda t, i: end + i), state_gradients(problem), corrected)


@identity(
    "S2.30",
    "fails",
    r"\lim_{i\rightarrow 0}(W_{hh}^{\top})^{T-i}=(W_{hh}^{\top})^{T}"
    r"\ \mathrm{is\ big}\ \Rightarrow\ \mathrm{gradient\ explosion}",
    "the largest power of W_hhᵀ in the sum is the T-th, and it is big",
    correct="i runs from t ≥ 1, so the largest power is T − t ≤ T − 1; for a large T it is big just where ρ(W_hh) > 1",
    correct_latex=r"i\geq t\geq 1\ \Rightarrow\ T-i\leq T-1,"
    r"\quad(W_{hh}^{\top})^{T-1}\ \mathrm{is\ big}\ \Leftrightarrow\ \rho(W_{hh})>1\ (T\gg 1)",
    general=lambda key: {"problem": linear_with_radius(key, 1.5 if jax.random.bernoulli(key) else 0.6)},
    smallest=[{"problem": scalar_net(w_hh, (1.0,) * 10, initial=1.0)} for w_hh in (0.5, 2.0)],
    counterexample="T = 10, t = 1: W_hh = ½ gives ½^9 = 0.002, not big (written ½^10); W_hh = 2 gives 512, not 1024",
)
def largest_power(problem):
    growth = log_growth(problem.jacobians[1:])  # dh_T/dh_1 carries the last error to the first state
    powers = [
        jnp.linalg.matrix_power(problem.params.cell.w_hh, power) for power in (problem.length - 1, problem.length)
    ]
    right, written = (jnp.log(jnp.linalg.norm(power.T, 2)) for power in powers)
    return Claim((written, True), (growth, growth > 0), (right, spectral_radius(problem) > 1))
