import jax.numpy as jnp
import numpy as np

from experiments import assembled


def test_singular_values_of_the_products_as_floats_have_them():
    chain = np.random.default_rng(0).normal(size=(4, 3, 3))
    expected = [np.linalg.svd(chain[0], compute_uv=False)]
    expected.append(np.linalg.svd(chain[1] @ chain[0], compute_uv=False))
    found = assembled.log_singular_values(jnp.asarray(chain))
    assert found.shape == (4, 3)
    np.testing.assert_allclose(found[:2], np.log(expected), rtol=1e-12)


def test_what_leaves_the_floats_is_lost():
    chain = jnp.stack([jnp.diag(jnp.array([1e30, 1.0, 1e-30], jnp.float32))] * 2)
    for dtype in (None, np.float64):
        first, second = assembled.log_singular_values(chain, dtype)
        np.testing.assert_allclose(first, np.log([1e30, 1, 1e-30]), rtol=1e-6)
        assert np.isnan(second).all()  # 1e60 is no float32
    small = assembled.log_singular_values(jnp.stack([jnp.diag(jnp.array([1.0, 1e-30], jnp.float32))] * 2))
    assert small[1, 0] == 0
    assert np.isneginf(small[1, 1])
