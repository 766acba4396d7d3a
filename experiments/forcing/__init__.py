"""Teacher forcing on a chaotic target: how fast does the gradient grow, and at which forcing does training work?

Claims, stated before the run. A net that learned a chaotic orbit has gradients that grow as e^(λ_1 T), λ_1 its own
exponent; forced sparsely, the state replaced by the data every τ samples, they are cut at every forcing; forced with
h → (1 − α) h + α y, α = 1 − 1/σ_max with σ_max the largest singular value of any step's Jacobian, every product of
Jacobians has norm 1 at most and at most a tenth of the growth is left. Training works best with τ near the
predictability time ln 2/λ_1: better than without forcing, than with τ ≫ 1/λ_1 (too late) and than with τ = 1 (every
step); so does α better than no forcing; and the net trained with τ = ln 2/λ_1, left to itself, has the λ_1 of the data
within a tenth. Where a net is not chaotic, its growth is no evidence, and the first two claims are not decided. (The
second was at first that the slope at α* is below a tenth of λ_1, which the bound on the products nearly implies.)

The target is the Lorenz system, all three coordinates observed every 0.05 units of time (1/λ_1 is 22 samples,
ln 2/λ_1 15); the net a shallow piecewise-linear one with a state of three. Every claim's interval is Student's t over
keys (weights and windows), training claims paired by key. Exact, and checked to 1e-12: the chain under α is 1 − α
times the free step's Jacobians at the pulled states; no product exceeds norm 1 at α*; BPTT under sparse forcing is
BPTT truncated at the forcings, and that of `models.teacher_forcing`.

Reference: Mikhaeil, Monfared & Durstewitz (2022), arXiv:2110.07238 (growth, sparse forcing); Hess, Monfared, Brenner &
Durstewitz (2023), arXiv:2306.04406 (the net, generalised forcing, α).
"""

from functools import partial
from typing import Any

import jax
import numpy as np

from experiments import harness, options

from . import nets
from .figure import plot
from .growth import Growth, Identities, measure_growth, measure_identities
from .summary import summarise
from .training import METHODS, PREDICTED, RECORDS, Training, train_all

SAMPLES = (10_000, 2_000, 2_000)  # of the training, validation and test data


@options.config
class Config:
    hidden: int = options.size(50, "hidden units H of the net")
    length: int = options.size(
        6 * nets.LYAPUNOV_TIME,
        "samples T of a training window",
        least=4 * nets.LYAPUNOV_TIME + 1,
        most=SAMPLES[0] - 1,
    )
    updates: int = options.size(2000, "parameter updates", least=RECORDS, full=4000)
    batch: int = options.size(4, "windows an update")
    keys: int = options.size(6, "trainings: weights and windows", least=2, full=20)
    seed: int = options.seed()
    out: str = options.out("forcing")
    full: bool = options.flag("the record run: more keys and twice the updates")


def run(config: Config, progress: Any = lambda message: None) -> dict[str, Training | Growth | Identities]:
    """Training in float32, all that is measured in float64 (the caller enables x64)."""
    progress("data")
    data_key, key = jax.random.split(jax.random.key(config.seed))
    samples = np.asarray(jax.jit(partial(nets.lorenz_data, length=sum(SAMPLES)))(data_key))
    data = np.split(samples, np.cumsum(SAMPLES)[:-1])
    training, net = train_all(config, data, jax.random.split(key, config.keys), progress)
    predicted = METHODS.index(PREDICTED)
    exponents = training.exponents[predicted], training.exponent_errors[predicted]
    progress("growth of the gradient")
    growth = measure_growth(config, net, data[-1], exponents)
    progress("what is exact")
    return {"training": training, "growth": growth, "identities": measure_identities(config, net, data[-1])}


EXPERIMENT = harness.Experiment(
    name="forcing",
    purpose="teacher forcing on a chaotic target: growth of the gradient, and training at every strength",
    description=__doc__,
    config=Config,
    run=run,
    summarise=summarise,
    plot=plot,
    takes="2 min",
    alt={
        "figure.png": (
            "Left, the logarithm of the gradient's norm over the horizon: without forcing it grows along a dashed line "
            "of slope λ_1, with forcing it stays level. Middle, the error of forecasts by how often and how strongly a "
            "net was forced, single keys as dots. Right, λ_1 of the trained nets left to themselves over that of the "
            "data, for the same forcings."
        ),
    },
)
