import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import descent

EVERY, RECORDS = 3, 2
RATES = np.array([0.1, 0.2])
AIMS = np.array([[3.0, -1.0], [0.5, 0.25], [2.0, 4.0]])  # [D, P]


def train(schedule):
    """Of ½ Σ c (θ − aim)² with c drawn at every update: losses [records, R, D] and θ [R, D, P]."""

    def gradient(params, key):
        curvature = jax.random.uniform(key, (), minval=0.5, maxval=1.5)
        return {"theta": curvature * (params["theta"] - params["aim"]), "aim": jnp.zeros(2)}

    def evaluate(params):
        return jnp.sum((params["theta"] - params["aim"]) ** 2)

    trainer = descent.make_trainer(gradient, evaluate, EVERY, schedule)
    state = descent.begin({"theta": jnp.zeros((3, 2)), "aim": jnp.asarray(AIMS)}, len(RATES))
    keys = jax.random.split(jax.random.key(1), 3)
    with jax.numpy_dtype_promotion("standard"):  # optax counts its steps in int32
        followed = descent.follow(
            lambda i, state: trainer, state, jnp.asarray(RATES), keys, records=RECORDS, every=EVERY
        )
        states, losses = zip(*followed, strict=True)
    return np.stack(losses), np.asarray(states[-1][0]["theta"]), keys


def by_hand(rate, aim, key, schedule):
    """θ after every update, by Adam's equations with the gradient clipped to norm 1."""
    theta, mean, square, thetas = np.zeros(2), 0.0, 0.0, []
    for step in range(EVERY * RECORDS):
        curvature = float(jax.random.uniform(jax.random.fold_in(key, step), (), minval=0.5, maxval=1.5))
        g = curvature * (theta - aim)
        g = g / max(1, np.linalg.norm(g))
        mean, square = 0.9 * mean + 0.1 * g, 0.999 * square + 0.001 * g**2
        move = (mean / (1 - 0.9 ** (step + 1))) / (np.sqrt(square / (1 - 0.999 ** (step + 1))) + 1e-8)
        theta = theta - rate * schedule(step) * move
        thetas.append(theta)
    return np.array(thetas)


@pytest.mark.parametrize("falls", [False, True])
def test_every_training_is_adam_of_its_own(falls):
    updates = EVERY * RECORDS
    losses, theta, keys = train(descent.fall_to_zero(updates) if falls else None)
    assert losses.shape == (RECORDS, 2, 3)
    for r, rate in enumerate(RATES):
        for d, (aim, key) in enumerate(zip(AIMS, keys, strict=True)):
            schedule = lambda step: (1 + np.cos(np.pi * step / updates)) / 2 if falls else 1
            thetas = by_hand(rate, aim, key, schedule)
            np.testing.assert_allclose(theta[r, d], thetas[-1], rtol=1e-10)
            np.testing.assert_allclose(losses[:, r, d], np.sum((thetas[EVERY - 1 :: EVERY] - aim) ** 2, axis=1))


def test_a_rate_that_failed_is_not_the_best():
    losses = np.array([[[1.0, np.nan], [2.0, 2.0]], [[1.0, 1.0], [2.0, 0.5]]])
    np.testing.assert_array_equal(descent.find_best_rates(losses), [1, 0])
