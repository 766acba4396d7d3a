"""Dynamical isometry: the singular values of dh_t/dh_0 of nets as they are drawn, and how fast they then learn.

Claims, stated before the run. The singular values of W^t, W one Gaussian matrix, are distributed as those of a product
of t independent ones, by the Fuss–Catalan law of order t (distance below 0.05 at t = 16), although a recurrent net has
the same W at every step. A tanh net with orthogonal weights at its critical gain has the relative variance
t (μ_2/μ_1² − 1) of σ² that the mean field gives for independent layers, within a tenth. Started there it learns in at
most half the updates of a net with Gaussian weights at the same gain, and a GRU with critical gates in at most half of
a default one's. Over all initialisations, the spread of ln σ (its standard deviation) orders the number of updates
(Spearman's correlation at least 0.5), and so does the distance from isometry (root mean square of ln σ).

Intervals are Student's t over keys; a net that does not reach the stated loss, half of what an answer without memory
costs, counts with all its updates; where neither of two nets does, their ratio is not known (at first it was counted
as 1). Exact, and checked: moments of σ² of products at N = 32 and the mean of ln σ (within 4 standard errors);
Σ ln σ(W^t) = t ln|det W|; σ = g^t for an orthogonal linear net, σ = |z + (1 − z) μ|^t for the critical GRU at rest, μ
the eigenvalues of its orthogonal matrix (all to 1e-12).

Reference: Pennington, Schoenholz & Ganguli (2017), arXiv:1711.04735; Chen, Pennington & Schoenholz (2018),
arXiv:1806.05394; Gilboa et al. (2019), arXiv:1901.08987; Alexeev, Götze & Tikhomirov (2010), arXiv:1002.4442.
"""

from typing import Any

import jax

from experiments import harness, options

from .chains import Exact, Products, Spectra, check_exact, make_record, measure_products, measure_starts
from .figure import plot
from .summary import summarise
from .training import Training, train_all


@options.config
class Config:
    size: int = options.size(256, "state entries N of the singular values", least=4)
    keys: int = options.size(4, "nets drawn of each kind, for these", least=2, full=10)
    transient: int = options.size(100, "steps before them")
    hidden: int = options.size(64, "units H of the trained nets")
    trainings: int = options.size(5, "trainings (weights and batches) of these", least=2, full=20)
    updates: int = options.size(400, "parameter updates", least=10, full=2000)
    batch: int = options.size(8, "sequences an update")
    seed: int = options.seed()
    out: str = options.out("isometry")
    full: bool = options.flag("the record run: more keys, five times the updates")


def run(config: Config, progress: Any = lambda message: None) -> dict[str, Products | Spectra | Exact | Training]:
    """Singular values in float64 (the caller enables x64), training in float32."""
    product_key, start_key, training_key = jax.random.split(jax.random.key(config.seed), 3)
    record = make_record()
    progress("products of Gaussian matrices")
    products = measure_products(config, product_key, record)
    progress("exact laws")
    exact = check_exact(config, start_key, record)
    spectra = measure_starts(config, start_key, record, progress)
    training = train_all(config, training_key, progress)
    return {"products": products, "exact": exact, "spectra": spectra, "training": training}


EXPERIMENT = harness.Experiment(
    name="isometry",
    purpose="singular values of nets as they are drawn, beside theory, and how fast they learn",
    description=__doc__,
    config=Config,
    run=run,
    summarise=summarise,
    plot=plot,
    takes="2 min",
    alt={
        "figure.png": (
            "Four panels: histograms of ln σ/t of powers of a Gaussian matrix for three lengths on the curves of the "
            "law; histograms of ln σ of nets at their start, narrow for orthogonal and very wide for Gaussian ones; "
            "the loss while training for each initialisation; the updates that each needs to reach a stated loss over "
            "the spread of its ln σ."
        ),
    },
)
