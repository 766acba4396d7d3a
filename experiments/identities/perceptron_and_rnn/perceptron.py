"""The two-layer perceptron with L2 penalty, forward and backward.

z = W_1 x, h = φ(z), o = W_2 h, J = L + s with L = ℓ(o, y) and s = λ/2 (‖W_1‖² + ‖W_2‖²). Without the penalty it is the
recurrent net at T = 1 and h_0 = 0, so the toolkit's BPTT is a second judge of the backward pass.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.identities import instances
from experiments.identities.identity import Claim, identity
from experiments.identities.instances import M, N, O
from jaxbptt import cells, models


class Weights(NamedTuple):
    w_1: jax.Array  # [H, M]
    w_2: jax.Array  # [O, H]


class Nodes(NamedTuple):
    """What the forward pass computes on the way to J, or J's derivative in each."""

    z: Any  # [H]
    h: Any  # [H]
    o: Any  # [O]
    loss: Any  # L
    penalty: Any  # s


UNCHANGED = Nodes(0, 0, 0, 0, 0)


class Perceptron(NamedTuple):
    weights: Weights
    x: jax.Array  # [M]
    y: jax.Array  # [O]
    decay: float  # λ
    activation: Callable = jnp.tanh  # φ
    order: str | int = "fro"  # of the norm in the penalty: "fro" Frobenius, 2 spectral


def compiled(function):
    """Jitted with φ and the order of the norm static."""
    run = jax.jit(lambda static, *arrays: function(Perceptron(*arrays, *static)), static_argnums=0)
    return lambda net: run((net.activation, net.order), *net[:4])


def penalty(weights, decay, order="fro"):
    """s = λ/2 Σ ‖W‖²."""
    return decay / 2 * sum(jnp.linalg.norm(w, order) ** 2 for w in weights)


def forward(net, changes=UNCHANGED):
    """(J, nodes), every node moved by `changes`."""
    z = net.weights.w_1 @ net.x + changes.z
    h = net.activation(z) + changes.h
    o = net.weights.w_2 @ h + changes.o
    loss = models.squared_error(o, net.y) + changes.loss
    s = penalty(net.weights, net.decay, net.order) + changes.penalty
    return loss + s, Nodes(z, h, o, loss, s)


@compiled
def backward(net):
    """The note's equations from J down: (derivatives in the nodes, derivatives in the weights)."""
    _, (z, h, o, _, _) = forward(net)
    to_o = jax.grad(models.squared_error)(o, net.y)
    to_h = net.weights.w_2.T @ to_o
    to_z = to_h * jnp.diag(jax.jacfwd(net.activation)(z))  # φ' entry by entry
    to_weights = Weights(jnp.outer(to_z, net.x), jnp.outer(to_o, h))
    decayed = jax.tree.map(lambda gradient, w: gradient + net.decay * w, to_weights, net.weights)
    return Nodes(to_z, to_h, to_o, 1.0, 1.0), decayed


@compiled
def node_gradients(net):
    """dJ/dnode by autodiff: the gradient in a change of each."""
    return jax.grad(lambda changes: forward(net, changes)[0])(jax.tree.map(jnp.zeros_like, forward(net)[1]))


@compiled
def penalty_gradients(net):
    """(s, ds/dW) by autodiff."""
    return jax.value_and_grad(penalty)(net.weights, net.decay, net.order)


@compiled
def whole_gradients(net):
    """dJ/dW by autodiff."""
    return jax.grad(lambda weights: forward(net._replace(weights=weights))[0])(net.weights)


def weight_gradients(net):
    """dJ/dW by autodiff, and by BPTT of the recurrent net at T = 1 plus autodiff of the penalty."""
    by_bptt, own = as_recurrent(net).gradient("bptt")[1], penalty_gradients(net)[1]
    return whole_gradients(net), Weights(by_bptt.cell.w_hx + own.w_1, by_bptt.readout.w_yh + own.w_2)


def as_recurrent(net):
    """The same z, h, o and L as one step of a recurrent net."""
    problem = instances.net(jax.random.key(0), activation=net.activation, reduction="sum", length=1)
    cell = cells.ElmanParams(net.weights.w_1, problem.params.cell.w_hh, jnp.zeros(N))
    params = models.SequenceParams(cell, models.Readout(net.weights.w_2, jnp.zeros(O)))
    return problem._replace(params=params, inputs=net.x[None], targets=net.y[None], initial=jnp.zeros(N))


def prod(outer, inner, shared):
    """The contraction of ∂Z/∂Y and ∂Y/∂X over the `shared` axes of Y."""
    return jnp.tensordot(outer, inner, shared)


def _draw(key, **options):
    keys = jax.random.split(key, 4)
    shapes = (N, M), (O, N), (M,), (O,)
    w_1, w_2, x, y = (jax.random.normal(*pair) for pair in zip(keys, shapes, strict=True))
    return {"net": Perceptron(Weights(w_1, w_2), x, y, decay=0.3, **options)}


def _diagonal(order):
    """W_1 = W_2 = diag(2, 1), λ = 1."""
    diagonal = jnp.diag(jnp.array([2.0, 1.0]))
    return {"net": Perceptron(Weights(diagonal, diagonal), jnp.ones(2), jnp.ones(2), decay=1.0, order=order)}


def _softmax_at_zero():
    """z = (0, 0) and W_2ᵀ ∂ℓ/∂o = (1, 0)."""
    weights = Weights(jnp.eye(2), jnp.array([[1.0, 0.0]]))
    return {"net": Perceptron(weights, jnp.zeros(2), jnp.array([-0.5]), decay=0.0, activation=jax.nn.softmax)}


def leading_part(matrix):
    """σ_1 u_1 v_1ᵀ."""
    u, sigma, v = jnp.linalg.svd(matrix)
    return sigma[0] * jnp.outer(u[:, 0], v[0])


def _frobenius_or_spectral(key, frobenius):
    return _draw(key, order="fro" if frobenius else 2)


@identity(
    "S2.1",
    "holds",
    r"\frac{\partial Z}{\partial X}=\mathrm{prod}\left(\frac{\partial Z}{\partial Y},"
    r"\frac{\partial Y}{\partial X}\right)",
    "the derivative of Z = g(f(X)) is that of g times that of f, contracted over every axis of Y = f(X)",
    general=lambda key: {**_draw(key), "x": jax.random.normal(key, (M, 4))},
)
def chain_rule(net, x):
    first = lambda x: net.activation(net.weights.w_1 @ x)
    second = lambda y: net.weights.w_2 @ y
    whole = jax.vmap(lambda x: forward(net._replace(x=x))[1].o, in_axes=1, out_axes=1)

    @jax.jit
    def both(x):
        y = first(x)
        return prod(jax.jacrev(second)(y), jax.jacrev(first)(x), shared=y.ndim), jax.jacfwd(whole)(x)

    return Claim(*both(x))


@identity(
    "S2.6",
    "conditional",
    r"s=\frac{\lambda}{2}\left(\Vert W^{(1)}\Vert_2^2+\Vert W^{(2)}\Vert_2^2\right)",
    "the penalty whose gradient is λW is half λ times the squared 2-norms",
    correct="with the Frobenius norm; the 2-norm of a matrix is the spectral one",
    correct_latex=r"s=\frac{\lambda}{2}\left(\Vert W^{(1)}\Vert_F^2+\Vert W^{(2)}\Vert_F^2\right)",
    general=_frobenius_or_spectral,
    smallest=[_diagonal(order=2)],
    counterexample="W_1 = W_2 = diag(2, 1), λ = 1: a spectral square is 4, a Frobenius square 5; s = 4, not 5",
)
def penalty_of_decay(net):
    # Euler: s is homogeneous of degree two, so twice s is its gradient times the weights.
    with_decay, without = (backward(net._replace(decay=decay))[1] for decay in (net.decay, 0.0))
    truth = sum(jnp.sum((a - b) * w) / 2 for a, b, w in zip(with_decay, without, net.weights, strict=True))
    return Claim(penalty_gradients(net)[0], truth, penalty_gradients(net._replace(order="fro"))[0])


@identity(
    "S2.8",
    "holds",
    r"\frac{\partial J}{\partial L}=1,\quad\frac{\partial J}{\partial s}=1",
    "the cost J = L + s has derivative one in the loss and in the penalty",
    general=_draw,
    counterexample="none; as printed, ∂J/∂λ = s/λ, which is 7 for W_1 = [1, 2], W_2 = [3]",
)
def cost_in_loss_and_penalty(net):
    truth = node_gradients(net)
    return Claim((1.0, 1.0), (truth.loss, truth.penalty))


@identity(
    "S2.9",
    "holds",
    r"\frac{\partial J}{\partial o}=\mathrm{prod}\left(\frac{\partial J}{\partial L},"
    r"\frac{\partial L}{\partial o}\right)=\frac{\partial\ell}{\partial o}",
    "the cost depends on the output through the loss alone",
    general=_draw,
)
def cost_in_output(net):
    return Claim(backward(net)[0].o, node_gradients(net).o)


@identity(
    "S2.10",
    "conditional",
    r"\frac{\partial s}{\partial W^{(1)}}=\lambda W^{(1)},\quad\frac{\partial s}{\partial W^{(2)}}=\lambda W^{(2)}",
    "the gradient of the penalty is λ times the weights",
    correct="with the Frobenius norm; with the spectral norm λ σ_1 u_1 v_1ᵀ",
    correct_latex=r"\Vert\cdot\Vert_F:\ \frac{\partial s}{\partial W^{(i)}}=\lambda W^{(i)},"
    r"\quad\Vert\cdot\Vert_2:\ \frac{\partial s}{\partial W^{(i)}}=\lambda\,\sigma_1u_1v_1^{\top}",
    general=_frobenius_or_spectral,
    smallest=[_diagonal(order=2)],
    counterexample="W = diag(2, 1), λ = 1: the spectral penalty has the gradient diag(2, 0), written diag(2, 1)",
)
def gradient_of_penalty(net):
    written = jax.tree.map(lambda w: net.decay * w, net.weights)
    by_svd = jax.tree.map(lambda w: net.decay * leading_part(w), net.weights)
    return Claim(written, penalty_gradients(net)[1], written if net.order == "fro" else by_svd)


@identity(
    "S2.11",
    "holds",
    r"\frac{\partial J}{\partial W^{(2)}}=\mathrm{prod}\left(\frac{\partial J}{\partial o},"
    r"\frac{\partial o}{\partial W^{(2)}}\right)+\mathrm{prod}\left(\frac{\partial J}{\partial s},"
    r"\frac{\partial s}{\partial W^{(2)}}\right)=\frac{\partial\ell}{\partial o}\,h^{\top}+\lambda W^{(2)}",
    "the gradient of the output weights is output error times hidden units, plus λ W_2",
    general=_draw,
)
def output_weights(net):
    return Claim((backward(net)[1].w_2,) * 2, tuple(route.w_2 for route in weight_gradients(net)))


@identity(
    "S2.12",
    "holds",
    r"\frac{\partial J}{\partial h}=\mathrm{prod}\left(\frac{\partial J}{\partial o},"
    r"\frac{\partial o}{\partial h}\right)=W^{(2)\top}\,\frac{\partial\ell}{\partial o}",
    "the gradient in the hidden units is W_2ᵀ times the output error",
    general=_draw,
)
def hidden_units(net):
    return Claim((backward(net)[0].h,) * 2, (node_gradients(net).h, as_recurrent(net).adjoints[0]))


@identity(
    "S2.13",
    "conditional",
    r"\frac{\partial J}{\partial z}=\mathrm{prod}\left(\frac{\partial J}{\partial h},"
    r"\frac{\partial h}{\partial z}\right)"
    r"=\left(W^{(2)\top}\,\frac{\partial\ell}{\partial o}\right)\odot\varphi'(z)",
    "the gradient before the activation is that after it, times φ' entry by entry",
    correct="for an elementwise φ; else the transposed Jacobian of φ times W_2ᵀ ∂ℓ/∂o",
    correct_latex=r"\frac{\partial h}{\partial z}=\mathrm{diag}(\varphi'(z)),"
    r"\quad\mathrm{else}\ \frac{\partial J}{\partial z}="
    r"\left(\frac{\partial h}{\partial z}\right)^{\top}W^{(2)\top}\,\frac{\partial\ell}{\partial o}",
    general=lambda key, satisfied: _draw(key, activation=jnp.tanh if satisfied else jax.nn.softmax),
    smallest=[_softmax_at_zero()],
    counterexample="softmax, z = (0, 0), W_2ᵀ ∂ℓ/∂o = (1, 0): written (1/4, 0), true (1/4, −1/4)",
)
def before_activation(net):
    nodes, values = backward(net)[0], forward(net)[1]
    (corrected,) = jax.vjp(net.activation, values.z)[1](nodes.h)
    return Claim(nodes.z, node_gradients(net).z, corrected)


@identity(
    "S2.14",
    "holds",
    r"\frac{\partial J}{\partial W^{(1)}}=\mathrm{prod}\left(\frac{\partial J}{\partial z},"
    r"\frac{\partial z}{\partial W^{(1)}}\right)+\mathrm{prod}\left(\frac{\partial J}{\partial s},"
    r"\frac{\partial s}{\partial W^{(1)}}\right)=\frac{\partial J}{\partial z}\,x^{\top}+\lambda W^{(1)}",
    "the gradient of the input weights is the error before the activation times x, plus λ W_1",
    general=_draw,
)
def input_weights(net):
    return Claim((backward(net)[1].w_1,) * 2, tuple(route.w_1 for route in weight_gradients(net)))
