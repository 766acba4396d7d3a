"""The product of Jacobians as a sum, as powers and by eigenvalues."""

import functools

import jax
import jax.numpy as jnp

from experiments.identities import instances
from experiments.identities.derivatives import end_in_start, state_pairs, states_in_states
from experiments.identities.identity import Claim, identity
from experiments.identities.instances import THETAS, N, T
from experiments.identities.rnn_gradients.state_jacobians import recurrence
from jaxbptt import cells, jacobians, models

from .double_sum import ALL, LENGTH, slopes, through_pairs, tutorial

POWER = 10
WELL_CONDITIONED = 1e8  # of Q; above 1/√eps no digit of QΛQ⁻¹ is worth keeping
SETTLED = 512  # steps after which λⁿ has gone where it goes, and has not left the floats


def sloped(weights, slopes):
    """h_t = d_t ⊙ (W h_{t−1}), h_0 = 1, L_t = Σ h_t: J_t = diag(d_t) W with slopes [T, N] of one's choice."""
    return instances.Problem(_sloped_model(), weights, slopes, slopes, jnp.ones(len(weights)))


@functools.cache
def _sloped_model():
    cell = cells.from_step(lambda weights, h, slope: slope * (weights @ h), lambda weights: jnp.ones(len(weights)))
    loss = lambda output, target: jnp.sum(output)
    return models.Model(cell.init, cell.initial_state, cell.step, lambda weights, h: h, loss)


@functools.partial(jax.jit, static_argnums=1)
def powers(matrix, count):
    """M, M², …, by the toolkit's product."""
    return jacobians.prefix_products(jnp.broadcast_to(matrix, (count, *matrix.shape)))


@jax.jit
def powers_of_latest(steps):
    """J_t^{t−k} at [t, k]."""
    each = range(len(steps))
    return jnp.array([[jnp.linalg.matrix_power(steps[t], max(t - k, 0)) for k in each] for t in each])


def affine(a):
    """A nonlinearity with one slope everywhere."""
    return 0.8 * a + 0.1


def diagonalisable(key):
    """A dense non-symmetric matrix with the eigenvalues r e^{±iφ} and s, well apart."""
    angle, radius, real = jax.random.uniform(key, (3,), minval=0.6, maxval=1.2)
    rotation = radius * jnp.array([[jnp.cos(angle), -jnp.sin(angle)], [jnp.sin(angle), jnp.cos(angle)]])
    basis = jnp.eye(N) + 0.3 * jax.random.normal(key, (N, N))
    return basis @ jax.scipy.linalg.block_diag(rotation, -real) @ jnp.linalg.inv(basis)


def jordan(value, size=2):
    """One eigenvalue, one eigenvector."""
    return value * jnp.eye(size) + jnp.eye(size, k=1)


def with_or_without_eigenvectors(key, satisfied):
    defective = jordan(jax.random.uniform(key, minval=0.5, maxval=1.5), N)
    return {"matrix": diagonalisable(key) if satisfied else defective}


def by_eigenvectors(matrix, power):
    """(Q Λⁿ Q⁻¹, whether Q can be inverted at all): eig gives no warning of its own."""
    values, vectors = jnp.linalg.eig(matrix)
    rebuilt = vectors @ jnp.diag(values**power) @ jnp.linalg.inv(vectors)
    return rebuilt, jnp.linalg.cond(vectors) < WELL_CONDITIONED


def by_schur(matrix, power):
    """Z Tⁿ Zᴴ, T triangular, Z unitary: there for every M."""
    triangular, unitary = jax.scipy.linalg.schur(matrix, output="complex")
    return unitary @ jnp.linalg.matrix_power(triangular, power) @ unitary.conj().T


def gathered(weights, slopes):
    """D_n … D_1 Wⁿ."""
    return jnp.prod(slopes, axis=0)[:, None] * jnp.linalg.matrix_power(weights, len(slopes))


DEFECTIVE = {
    "smallest": [{"matrix": jordan(1.0)}, {"matrix": jordan(2.0)}],
    "counterexample": "M = [[1, 1], [0, 1]]: cond Q = 9e15, Q Λ¹⁰ Q⁻¹ = I, true [[1, 10], [0, 1]]; "
    "[[2, 1], [0, 2]]: corner 0, true 5120",
}


@identity(
    "S4.10",
    "fails",
    r"\prod_{i=k+1}^{t}\frac{\partial h_i}{\partial h_{i-1}}\hookrightarrow"
    r"\sum_{i=1}^{t}\left[\mathrm{diag}(\sigma^{\prime}(W_i^{\top}x))\,W\right]",
    "dh_t/dh_k is the sum of the step Jacobians from 1 to t (their σ' granted at the argument it has)",
    correct="the product from k + 1 to t, the latest on the left, with σ' at W h_{i−1} + U x_i + b",
    correct_latex=r"\prod_{i=k+1}^{t}\frac{\partial h_i}{\partial h_{i-1}}="
    r"\prod_{i=k+1}^{t}\left[\mathrm{diag}(\sigma^{\prime}(Wh_{i-1}+Ux_i+b))\,W\right]",
    general=lambda key: {"problem": tutorial(key)["problem"], "t": 3, "k": 1, "activation": jnp.tanh},
    smallest=[
        {"problem": recurrence([[theta]], length=LENGTH), "t": 3, "k": 0, "activation": jnp.positive}
        for theta in THETAS
    ],
    counterexample="three factors 2: sum 6, product 8",
)
def sum_for_product(problem, t, k, activation):
    each = slopes(problem, activation)[:, :, None] * problem.params.cell.w_hh
    corrected = functools.reduce(jnp.matmul, each[k + 1 : t + 1][::-1])
    return Claim(jnp.sum(problem.jacobians[1 : t + 1], axis=0), states_in_states(problem)[t, k], corrected)


@identity(
    "S4.12",
    "conditional",
    r"\frac{\partial L}{\partial W}=\frac{\partial L_0}{\partial h_0}\frac{\partial h_0}{\partial W}+\ldots+"
    r"\frac{\partial L_3}{\partial h_3}\left[\mathrm{diag}(\sigma^{\prime})W\right]^3\frac{\partial h_0}{\partial W}"
    r"+\ldots+\frac{\partial L_3}{\partial h_3}\frac{\partial h_3}{\partial W}",
    "at T = 3 the gradient in W is ten terms, dh_t/dh_k being a power of diag(σ') W",
    correct="where σ' is the same at every step; else the power stands for D_t W … D_{k+1} W",
    correct_latex=r"D_1=D_2=D_3,\quad\mathrm{else}\ \frac{dL}{dW}=\sum_{t=0}^{3}"
    r"\sum_{k=0}^{t}\frac{\partial L_t}{\partial h_t}\,D_tW\cdots D_{k+1}W\,\frac{\partial^{+}h_k}{\partial^{+}W},"
    r"\quad D_t=\mathrm{diag}(\sigma_t^{\prime})",
    general=lambda key, satisfied: (
        {**tutorial(key), "problem": instances.net(key, activation=affine, reduction="sum", length=LENGTH)}
        if satisfied
        else tutorial(key)
    ),
    smallest=[{"problem": sloped(jnp.array([[2.0]]), jnp.array([[1.0], [1.0], [0.5]])), "columns": ALL}],
    counterexample="w = 2, σ' = 1 then ½: dh_2/dh_0 = 2; powers 1 (by the last σ') or 4",
)
def powers_for_products(problem, columns):
    def of(pairs):
        return through_pairs(problem, pairs, problem.direct_params)[columns], pairs[-1, 0]

    truth = problem.flat_gradient("bptt")[columns], states_in_states(problem)[-1, 0]
    return Claim(of(powers_of_latest(problem.jacobians)), truth, of(state_pairs(problem.jacobians)))


@identity(
    "S4.13",
    "conditional",
    r"M=Q\Lambda Q^{-1}\ \Rightarrow\ M^n=Q\Lambda^nQ^{-1}",
    "the powers of a matrix are had from its eigenvectors and the powers of its eigenvalues",
    correct="for M diagonalisable over the complex numbers, which cond(Q) tells; else the Schur form Z Tⁿ Zᴴ",
    correct_latex=r"\mathrm{cond}(Q)<\infty,\quad\mathrm{else}\ M=ZTZ^{H}\ \Rightarrow\ M^n=ZT^nZ^{H}",
    general=with_or_without_eigenvectors,
    **DEFECTIVE,
)
def power_by_eigenvectors(matrix):
    written, invertible = by_eigenvectors(matrix, POWER)
    truth = powers(matrix, POWER)[-1]
    return Claim((written, True), (truth, invertible), (by_schur(matrix, POWER), invertible))


@identity(
    "S4.14",
    "conditional",
    r"MQ=(\lambda_1q_1,\ldots,\lambda_nq_n)=Q\Lambda,\quad\mathrm{thus}\ M=Q\Lambda Q^{-1}",
    "the eigenvectors as columns give MQ = QΛ, and so M itself",
    correct="MQ = QΛ always; M = QΛQ⁻¹ only with n independent eigenvectors (else Z T Zᴴ)",
    correct_latex=r"MQ=Q\Lambda,"
    r"\quad\mathrm{cond}(Q)<\infty\ \Rightarrow\ M=Q\Lambda Q^{-1},\quad\mathrm{else}\ M=ZTZ^{H}",
    general=with_or_without_eigenvectors,
    smallest=DEFECTIVE["smallest"],
    counterexample="M = [[1, 1], [0, 1]]: cond Q = 9e15, QΛQ⁻¹ = I",
)
def eigenvectors_as_columns(matrix):
    values, vectors = jnp.linalg.eig(matrix)
    m = powers(matrix, 1)[0]
    written = vectors @ jnp.diag(values), by_eigenvectors(matrix, 1)[0]
    return Claim(written, (m @ vectors, m), (vectors * values, by_schur(matrix, 1)))


@identity(
    "S4.15",
    "holds",
    r"M^{k+1}=MM^k=Q\Lambda Q^{-1}(Q\Lambda^kQ^{-1})=Q\Lambda\cdot\Lambda^kQ^{-1}=Q\Lambda^{k+1}Q^{-1}",
    "from one power by eigenvectors to the next, for a diagonalisable M",
    general=lambda key: {"matrix": diagonalisable(key)},
)
def induction_on_powers(matrix):
    step = range(1, POWER)
    written = [by_eigenvectors(matrix, k + 1)[0] for k in step]
    by_one_more = [by_eigenvectors(matrix, 1)[0] @ by_eigenvectors(matrix, k)[0] for k in step]
    truth = list(powers(matrix, POWER)[1:])
    return Claim((written, by_one_more), (truth, truth))


@identity(
    "S4.16",
    "fails",
    r"\prod_{i=1}^{n}\mathrm{diag}(\sigma_i^{\prime})\,W=\mathrm{diag}(\sigma_i^{\prime})^n\cdot W^n",
    "in the product of Jacobians all slopes can be gathered on the left of a power of W (the n-th power of "
    "diag(σ_i') read as the product of the n of them)",
    correct="the ordered product; gathered where every D_i commutes with W, that is d_j = d_k wherever W_jk ≠ 0",
    correct_latex=r"\prod_{i=1}^{n}\mathrm{diag}(\sigma_i^{\prime})\,W=D_nW\cdots D_1W,\quad D_i="
    r"\mathrm{diag}(\sigma_i^{\prime}),\quad(D_iW-WD_i)_{jk}=(\sigma_{ij}^{\prime}-\sigma_{ik}^{\prime})\,W_{jk},"
    r"\quad D_iW=WD_i\ \mathrm{for\ all}\ i\ \Rightarrow\ D_nW\cdots D_1W=D_n\cdots D_1\,W^n",
    general=lambda key: {
        "weights": instances.matrix(key),
        "slopes": 1 - jnp.tanh(jax.random.normal(key, (T, N))) ** 2,
    },
    smallest=[
        {"weights": jnp.array([[0.0, 1], [1, 0]]), "slopes": jnp.tile(jnp.array([1, 0.5]), (2, 1))},
        {"weights": 2 * jnp.array([[1.0, -1], [1, -1]]), "slopes": jnp.tile(jnp.array([1.0, 0]), (POWER, 1))},
    ],
    counterexample="D = diag(1, ½), W = [[0, 1], [1, 0]], ‖DW − WD‖ = 0.71: (DW)² = ½I, D²W² = diag(1, ¼); "
    "D = diag(1, 0), W = 2[[1, −1], [1, −1]], ‖DW − WD‖ = 2.8: (DW)¹⁰ has ±1024, D¹⁰W¹⁰ = 0",
)
def slopes_gathered(weights, slopes):
    problem, count = sloped(weights, slopes), len(slopes)
    written = gathered(weights, slopes)
    # The commutator D_i W − W D_i; its entry (j, k) is (d_j − d_k) W_jk.
    commutator = problem.jacobians - weights * slopes[:, None, :]
    entries = (slopes[:, :, None] - slopes[:, None, :]) * weights
    # Two units of one slope and W without entries to others: they commute.
    shared = slopes.at[:, 1].set(slopes[:, 0])
    blocks = jnp.where(jnp.all(shared[:, :, None] == shared[:, None, :], axis=0), weights, 0.0)
    in_blocks = gathered(blocks, shared)
    return Claim(
        (written, jnp.zeros_like(entries), in_blocks),
        (end_in_start(problem), commutator, end_in_start(sloped(blocks, shared))),
        (problem.product(0, count), entries, in_blocks),
    )


@identity(
    "S4.17",
    "conditional",
    r"W^n=Q\Lambda^nQ^{-1}\ \Rightarrow\ \Lambda^n=\mathrm{diag}(\lambda_1^n,\ldots,\lambda_n^n)",
    "dh_n/dh_0 of the linear recurrence h_t = W h_{t−1} is QΛⁿQ⁻¹, its trace the sum of the powers of the eigenvalues",
    correct="for W diagonalisable over the complex numbers, which cond(Q) tells; the trace always",
    correct_latex=r"\mathrm{cond}(Q)<\infty,\quad\mathrm{else}\ W=ZTZ^{H}\ \Rightarrow\ W^n=ZT^nZ^{H},"
    r"\quad\mathrm{tr}(W^n)=\sum_{i}\lambda_i^n\ \mathrm{always}",
    general=with_or_without_eigenvectors,
    **DEFECTIVE,
)
def linear_recurrence_by_eigenvectors(matrix):
    written, invertible = by_eigenvectors(matrix, POWER)
    trace = jnp.sum(jnp.linalg.eigvals(matrix) ** POWER)
    truth = end_in_start(sloped(matrix, jnp.ones((POWER, len(matrix)))))
    return Claim(
        (written, trace, True),
        (truth, jnp.trace(truth), invertible),
        (by_schur(matrix, POWER), trace, invertible),
    )


@jax.jit
def limits_of_powers(values):
    """lim λⁿ measured on the toolkit's powers of [[a, −b], [b, a]]; NaN where there is none."""
    a, b = jnp.real(values), jnp.imag(values)
    matrices = jnp.array([[a, -b], [b, a]]).transpose(2, 0, 1)
    before, last = (jax.vmap(lambda matrix: powers(matrix, SETTLED)[-2:, :, 0])(matrices) @ jnp.array([1, 1j])).T
    ratio, size = last / before, jnp.abs(last)
    upward = (size > WELL_CONDITIONED) & (jnp.imag(ratio) == 0) & (jnp.real(ratio) > 1)
    settled = jnp.where(size < 1 / WELL_CONDITIONED, 0, jnp.real(last))
    return jnp.where(upward, jnp.inf, jnp.where(jnp.abs(last - before) < 1e-12, settled, jnp.nan))


@identity(
    "S4.18",
    "conditional",
    r"\lim_{n\rightarrow\infty}\lambda_i^n=\infty\ (\lambda_i>1),\quad 1\ (\lambda_i=1),\quad 0\ (\mathrm{else})",
    "the powers of an eigenvalue go to infinity, one or zero as it is above, at or below one",
    correct="for real λ > −1 and complex |λ| < 1; for λ ≤ −1 and other complex λ there is no limit. It bounds neither "
    "Wⁿ of a defective W nor the nonlinear product (X1 to X4)",
    correct_latex=r"\lim_{n\rightarrow\infty}\lambda_i^n=\infty\ (\lambda_i>1),"
    r"\quad 1\ (\lambda_i=1),\quad 0\ (\left|\lambda_i\right|<1),\quad\mathrm{none}\ (\mathrm{else})",
    general=lambda key, satisfied: {
        "values": jnp.array([1, 1.5, -0.5, 0.5, 0.5j]) * jnp.array([1, *jax.random.uniform(key, (4,), minval=0.8)])
        if satisfied
        else -jnp.exp(jnp.array([0, 1, 0.1 + 1j]) * jax.random.uniform(key, (3,), minval=0.3, maxval=0.9)),
    },
    smallest=[{"values": jnp.array([-1, -2, 1j])}],
    counterexample="(−1)ⁿ and iⁿ = i, −1, −i, 1 go round and (−2)ⁿ grows with changing sign: no limit, the rule says 0",
)
def limits_of_eigenvalue_powers(values):
    a, real = jnp.real(values), jnp.imag(values) == 0
    written = jnp.where(real & (a > 1), jnp.inf, jnp.where(real & (a == 1), 1.0, 0.0))
    corrected = jnp.where((jnp.abs(values) < 1) | (real & (a >= 1)), written, jnp.nan)
    return Claim(written, limits_of_powers(values), corrected)
