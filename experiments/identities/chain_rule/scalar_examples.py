"""The scalar examples, f(z) = z² with z = 4x + 3 and f(θ) = θ h(θ) + θ², and what the note draws from them: tied
copies of w, and the paths of h_t to each loss.

Total derivatives are `jax.grad` of the composition. With h = 3θ the terms θ h' and h are equal and could be swapped
unseen, so the rows that are about any h also run on a curved one.
"""

import jax
import jax.numpy as jnp

from experiments.identities import instances
from experiments.identities.derivatives import sensitivities, state_pairs, via_output
from experiments.identities.identity import Claim, identity
from experiments.identities.instances import THETAS


def square(z):
    return z * z


def affine(x):
    return 4 * x + 3


def triple(theta):
    return 3 * theta


def curved(theta):
    return jnp.sin(2 * theta) + 0.5


def joined(theta, h):
    """f with both its arguments: θ h + θ²."""
    return theta * h + theta**2


def composed(theta, inner=triple):
    """f(θ), h a function of θ."""
    return joined(theta, inner(theta))


def through_inner(theta, inner=triple):
    """(∂f/∂h) h'."""
    return jax.grad(joined, argnums=1)(theta, inner(theta)) * jax.grad(inner)(theta)


def with_inner_frozen(theta, inner=triple):
    """∂⁺f/∂⁺θ."""
    return jax.grad(joined)(theta, inner(theta))


def _draw(key):
    return {"theta": jax.random.uniform(key, minval=0.3, maxval=1.7)}


def _draw_with_curved(key):
    return {**_draw(key), "inner": curved}


AT_ONE = {"theta": 1.0}
AT_SEVERAL = [AT_ONE, {"theta": -0.6}, {"theta": 3.0}]
ANY_INNER_AT_ONE = {**AT_ONE, "inner": triple}


@identity(
    "S1.27",
    "holds",
    r"\frac{\partial f(z)}{\partial x}=\frac{\partial f}{\partial z}\times\frac{\partial z}{\partial x}"
    r"=2z\times 4=32x+24,\quad f(z)=16x^2+9+24x",
    "(4x + 3)² has the derivative 32x + 24 by the chain rule and by expanding",
    general=lambda key: {"x": jax.random.normal(key)},
    smallest=[{"x": x} for x in (0.0, 1.0, -0.75)],
    counterexample="24, 56 and 0 at x = 0, 1 and −3/4",
)
def chain_rule_of_square(x):
    total = jax.grad(lambda x: square(affine(x)))(x)
    factors = jax.grad(square)(affine(x)) * jax.grad(affine)(x)
    expanded = jax.grad(lambda x: 16 * x**2 + 9 + 24 * x)(x)
    return Claim((factors, 2 * affine(x) * 4, 32 * x + 24, expanded), (total,) * 4)


@identity(
    "S1.28",
    "fails",
    r"\frac{\partial f}{\partial h}\frac{\partial h}{\partial\theta}=\theta\times 3=3\theta,\quad"
    r"\frac{\partial f}{\partial\theta}=2\theta+3\theta",
    "f = θ h(θ) + θ² with h = 3θ has the derivative 2θ + 3θ",
    correct="the part through h is 3θ, but the direct part is 2θ + h(θ): 8θ",
    correct_latex=r"\frac{\partial f}{\partial h}\frac{\partial h}{\partial\theta}=\theta\times 3=3\theta,"
    r"\quad\frac{df}{d\theta}=3\theta+\left(2\theta+h(\theta)\right)=8\theta",
    general=_draw,
    smallest=AT_SEVERAL,
    counterexample="θ = 1: written 5, true 8",
)
def bare_factor_forgotten(theta):
    written = jax.grad(square)(theta) + through_inner(theta)
    return Claim(written, jax.grad(composed)(theta), through_inner(theta) + with_inner_frozen(theta))


@identity(
    "S1.29",
    "holds",
    r"\frac{\partial f(\theta)}{\partial\theta}=2\theta+\theta' h(\theta)+"
    r"\theta\times\frac{\partial h(\theta)}{\partial\theta}",
    "the product rule on θ h(θ), plus 2θ",
    general=_draw_with_curved,
    smallest=[ANY_INNER_AT_ONE],
    counterexample="2 + 3 + 3 = 8 at θ = 1 with h = 3θ",
)
def product_rule(theta, inner):
    own = jax.grad(lambda theta: theta)(theta)
    written = 2 * theta + own * inner(theta) + theta * jax.grad(inner)(theta)
    return Claim(written, jax.grad(composed)(theta, inner))


@identity(
    "S1.30",
    "holds",
    r"\frac{\partial f(\theta)}{\partial\theta}=\left(\frac{\partial f(\theta)}{\partial\theta}\right)_{h(\theta)}+"
    r"\left(\frac{\partial f(\theta)}{\partial\theta}\right)_{h}="
    r"\frac{\partial f(\theta)}{\partial h(\theta)}\frac{\partial h(\theta)}{\partial\theta}+"
    r"\frac{\partial f(\theta)}{\partial\theta}",
    "the total derivative is the part through h plus the direct part with h frozen, nothing counted twice",
    general=_draw_with_curved,
    smallest=[ANY_INNER_AT_ONE],
    counterexample="3 + 5 = 8 at θ = 1 with h = 3θ",
)
def through_and_direct(theta, inner):
    written = through_inner(theta, inner) + with_inner_frozen(theta, inner)
    return Claim(written, jax.grad(composed)(theta, inner))


@identity(
    "S1.31",
    "holds",
    r"\frac{\partial f(\theta)}{\partial\theta}=\theta\times 3+2\theta+h(\theta)",
    "with h = 3θ: 3θ through h, 2θ and h(θ) directly",
    general=_draw,
    smallest=AT_SEVERAL,
    counterexample="3 + 2 + 3 = 8 at θ = 1",
)
def three_parts(theta):
    parts = theta * 3, 2 * theta + triple(theta)
    paths = through_inner(theta), with_inner_frozen(theta)
    return Claim((*parts, sum(parts)), (*paths, jax.grad(composed)(theta)))


@identity(
    "S1.32",
    "fails",
    r"\frac{\partial f(\theta)}{\partial\theta}=3\theta+2\theta+\theta=f(\theta)",
    "the three parts are 3θ, 2θ and θ, which is f(θ)",
    correct="h(θ) = 3θ, so 3θ + 2θ + 3θ = 8θ (the printed f(θ) is very likely a misread 8θ)",
    correct_latex=r"\frac{\partial f(\theta)}{\partial\theta}=3\theta+2\theta+h(\theta)=8\theta",
    general=_draw,
    smallest=AT_SEVERAL,
    counterexample="θ = 1: written 6, f(1) = 4, true 8",
)
def third_part_misread(theta):
    written = 3 * theta + 2 * theta + theta, composed(theta)
    corrected = 3 * theta + 2 * theta + triple(theta), 8 * theta
    return Claim(written, (jax.grad(composed)(theta),) * 2, corrected)


@identity(
    "S1.33",
    "holds",
    r"f(\theta)=3\theta^2+\theta^2=4\theta^2",
    "with h = 3θ put in, f is 4θ²",
    general=_draw,
    smallest=AT_SEVERAL,
    counterexample="f(1) = 4",
)
def expanded_value(theta):
    return Claim((3 * theta**2 + theta**2, 4 * theta**2), (composed(theta),) * 2)


@identity(
    "S1.34",
    "holds",
    r"\frac{\partial f(\theta)}{\partial\theta}=8\theta",
    "the derivative of f is 8θ (printed fθ, which read as a product would be 4θ³)",
    general=_draw,
    smallest=AT_SEVERAL,
    counterexample="8 at θ = 1, where the printed f θ would be 4",
)
def eight_theta(theta):
    return Claim((8 * theta, jax.grad(lambda theta: 4 * theta**2)(theta)), (jax.grad(composed)(theta),) * 2)


@identity(
    "S1.35",
    "conditional",
    r"\frac{\partial z}{\partial w}=\frac{\partial z}{\partial w_{t+1}}\frac{\partial w_{t+1}}{\partial w}"
    r"+\frac{\partial z}{\partial w_t}\frac{\partial w_t}{\partial w}",
    "give each step its own copy of w: the derivative in w is the sum over two of the copies",
    correct="over all copies that reach z; two are enough if there are no more, as for z = L_2",
    correct_latex=r"t=1,\quad\mathrm{else}\ \frac{\partial z}{\partial w}="
    r"\sum_{s=1}^{t+1}\frac{\partial z}{\partial w_s}\frac{\partial w_s}{\partial w},\quad z=L_{t+1}",
    general=lambda key, satisfied: {"problem": instances.shared_net(key), "t": 2 if satisfied else 4},
    smallest=[{"problem": instances.scalar(a, 3), "t": 3} for a in THETAS],
    counterexample="z = L_3 = w³ at w = 2: two copies 8, true 12",
)
def tied_copies(problem, t):
    adjoint = jnp.einsum("n,knm->km", via_output(problem)[t - 1], state_pairs(problem.jacobians)[t - 1])
    copies = jnp.einsum("kn,knp->kp", adjoint, problem.direct_params)
    copies = copies.at[t - 1].add(problem.loss_output[t - 1] @ problem.output_params[t - 1])
    return Claim(jnp.sum(copies[t - 2 : t], axis=0), problem.total_losses[t - 1], jnp.sum(copies[:t], axis=0))


@identity(
    "S1.36",
    "holds",
    r"\left(\frac{\partial L_s}{\partial h_t}\right)_{o^t}="
    r"\frac{\partial L_s}{\partial o^t}\frac{\partial o^t}{\partial h_t}",
    "through o_t, h_t reaches L_s by ∂L_s/∂o_t times ∂o_t/∂h_t, which is not zero only for s = t",
    general=lambda key: {"problem": instances.shared_net(key)},
)
def path_through_output(problem):
    losses = sensitivities(problem)[1]
    written = jnp.einsum("sto,ton->stn", losses.output, problem.output_state)
    own_only = jnp.eye(problem.length)[:, :, None] * via_output(problem)
    return Claim((written, own_only), (losses.read, losses.read))


@identity(
    "S1.37",
    "holds",
    r"\frac{\partial L_s}{\partial h_t}=\left(\frac{\partial L_s}{\partial h_t}\right)_{o^t}"
    r"+\left(\frac{\partial L_s}{\partial h_t}\right)_{h_{t+1}}",
    "L_s sees h_t through o_t (only s = t) plus through h_{t+1} (only s > t), and not at all for s < t",
    general=lambda key: {"problem": instances.shared_net(key)},
    smallest=[{"problem": instances.scalar(a, 3)} for a in THETAS],
    counterexample="1 + 2 + 4 = 7 = dC/dh_1 with h_t = 2h_{t−1}, o = h, T = 3",
)
def paths_to_each_loss(problem):
    losses = sensitivities(problem)[1]
    products = jnp.einsum("sn,stnm->stm", via_output(problem), state_pairs(problem.jacobians))
    written = losses.read + losses.carried, products, jnp.sum(products, axis=0)
    return Claim(written, (losses.state, losses.state, problem.adjoints))
