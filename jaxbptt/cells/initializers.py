"""Schemes (key, shape, dtype) -> array that draw a recurrent weight matrix."""

from typing import Any, Protocol

import jax
import jax.numpy as jnp

from jaxbptt import _validation
from jaxbptt.types import Key, Scalar


class Scheme(Protocol):
    def __call__(self, key: Key, shape: tuple[int, int], dtype: Any) -> jax.Array:
        """One recurrent matrix [H, H]."""
        ...


class GateBias(Protocol):
    def __call__(self, key: Key, num_hidden: int, dtype: Any) -> tuple[jax.Array, jax.Array]:
        """(b_i [H], b_f [H]), the biases of the input and the forget gate."""
        ...


def gaussian(gain: float | Scalar = 1.0) -> Scheme:
    """W_ij ~ N(0, gain²/H): spectral radius about `gain`, largest singular value about 2·`gain`.

    Args:
      gain: g, a finite scalar; it may be traced.

    Returns:
      A scheme (key, shape, dtype) -> [H, H].

    Raises:
      TypeError, ValueError: a gain that is no real finite scalar.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxbptt import cells
      >>> w_hh = cells.gaussian(1.5)(jax.random.key(0), (100, 100), jnp.result_type(float))
      >>> round(10 * float(w_hh.std()), 1)  # √H times the standard deviation
      1.5

    Reference: Ginibre (1965), circular law.
    """
    _require_finite("gain", gain)

    def draw(key, shape, dtype):
        return jax.random.normal(key, shape, dtype) * jnp.asarray(gain / shape[1] ** 0.5, dtype)

    return draw


def orthogonal(gain: float | Scalar = 1.0) -> Scheme:
    """W = gain·Q, Q uniform over the orthogonal group: every singular value is `gain`.

    Args:
      gain: g, a finite scalar; it may be traced.

    Returns:
      A scheme (key, shape, dtype) -> [H, H].

    Raises:
      TypeError, ValueError: a gain that is no real finite scalar.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxbptt import cells
      >>> w_hh = cells.orthogonal(2.0)(jax.random.key(0), (3, 3), jnp.result_type(float))
      >>> bool(jnp.allclose(w_hh @ w_hh.T, 4 * jnp.eye(3), atol=1e-5))
      True

    Reference: Saxe, McClelland & Ganguli (2014), arXiv:1312.6120.
    """
    _require_finite("gain", gain)

    def draw(key, shape, dtype):
        return jax.nn.initializers.orthogonal(gain)(key, shape, dtype)

    return draw


def identity(gain: float | Scalar = 1.0) -> Scheme:
    """W = gain·I; the key is not used.

    Args:
      gain: g, a finite scalar; it may be traced.

    Returns:
      A scheme (key, shape, dtype) -> [H, H].

    Raises:
      TypeError, ValueError: a gain that is no real finite scalar.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxbptt import cells
      >>> cells.identity(0.5)(jax.random.key(0), (2, 2), jnp.result_type(float)).tolist()
      [[0.5, 0.0], [0.0, 0.5]]

    Reference: Le, Jaitly & Hinton (2015), arXiv:1504.00941.
    """
    _require_finite("gain", gain)

    def draw(key, shape, dtype):
        return jnp.asarray(gain, dtype) * jnp.eye(shape[0], shape[1], dtype=dtype)

    return draw


def _require_finite(name, value, expected="a finite number"):
    _validation.require_scalar(name, value, expected)
    if _validation.is_concrete(value) and not abs(value) < float("inf"):
        raise ValueError(f"{name}: got {value}, expected {expected}")


def chrono(max_lag: float) -> GateBias:
    """b_f = ln u, u ~ U[1, T_max − 1], and b_i = −b_f: a unit forgets at the rate 1 − σ(b_f) = 1/(1 + u).

    The units' time constants 1 + u then cover 2 to T_max steps evenly.

    Args:
      max_lag: T_max > 2, the longest dependency expected, in steps.

    Returns:
      A scheme (key, num_hidden, dtype) -> (b_i [H], b_f [H]), the `forget_bias` of `lstm` or `min_lstm`.

    Raises:
      TypeError, ValueError: a max_lag that is not a finite number above 2.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxbptt import cells
      >>> b_i, b_f = cells.chrono(50.0)(jax.random.key(0), 4, jnp.result_type(float))
      >>> steps = 1 / (1 - jax.nn.sigmoid(b_f))  # the time constants
      >>> bool(((steps >= 2) & (steps <= 50.001)).all())
      True

    Reference: Tallec & Ollivier (2018), arXiv:1804.11188.
    """
    _validation.require_above("max_lag", max_lag, 2)

    def draw(key, num_hidden, dtype):
        forget = jnp.log(jax.random.uniform(key, (num_hidden,), dtype, minval=1, maxval=max_lag - 1))
        return -forget, forget

    return draw


def draw_weights(
    key: Key, recurrent: Scheme, num_inputs: int, num_hidden: int, num_gates: int
) -> tuple[jax.Array, jax.Array]:
    """(w_hx [G·H, M] ~ N(0, 1/M), w_hh [G·H, H]: one draw of `recurrent` per gate), in JAX's default float."""
    dtype = jnp.result_type(float)
    input_key, *gate_keys = jax.random.split(key, 1 + num_gates)
    shape, expected = (num_hidden, num_hidden), "a scheme (key, shape, dtype) -> [H, H], such as gaussian(1.0)"
    try:
        gates = [recurrent(gate_key, shape, dtype) for gate_key in gate_keys]
    except (TypeError, ValueError) as error:
        raise TypeError(f"recurrent: got one that fails ({error}), expected {expected}") from error
    if (got := jnp.shape(gates[0])) != shape:
        raise ValueError(f"recurrent: got one that gives shape {list(got)}, expected {list(shape)}")
    return draw_input_weights(input_key, num_gates * num_hidden, num_inputs), jnp.concatenate(gates)


def draw_input_weights(key: Key, num_rows: int, num_inputs: int) -> jax.Array:
    """[rows, M] ~ N(0, 1/M), in JAX's default float."""
    dtype = jnp.result_type(float)
    weights = jax.random.normal(key, (num_rows, num_inputs), dtype)
    return weights * jnp.asarray(max(num_inputs, 1) ** -0.5, dtype)


def require_scheme(recurrent: Any) -> None:
    """Raise unless it is a function."""
    if not callable(recurrent):
        raise TypeError(f"recurrent: got {type(recurrent).__name__}, expected a scheme such as gaussian(1.0)")


def require_gate_bias(forget_bias: Any) -> None:
    """Raise unless it is a scheme or a finite number."""
    if not callable(forget_bias):
        _require_finite("forget_bias", forget_bias, "a finite number or a scheme such as chrono")


def draw_gate_bias(key: Key, forget_bias: float | GateBias, num_hidden: int, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """(b_i [H], b_f [H]): drawn by the scheme, or 0 and the number."""
    if callable(forget_bias):
        try:
            of_input, of_forget = forget_bias(key, num_hidden, dtype)
        except (TypeError, ValueError) as error:
            expected = "a scheme (key, num_hidden, dtype) -> (b_i, b_f), such as chrono(T_max)"
            raise TypeError(f"forget_bias: got one that fails ({error}), expected {expected}") from error
        return of_input, of_forget
    zeros = jnp.zeros(num_hidden, dtype)
    return zeros, jnp.full_like(zeros, forget_bias)
