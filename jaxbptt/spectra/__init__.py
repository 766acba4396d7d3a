"""Where the gradient goes: singular values, exponents, norms and bounds of Jacobian chains of any length.

dh_t/dh_k = J_t J_{t-1} ... J_{k+1}, the latest factor on the left. A chain is [T, N, N] or, for singular
values, exponents and norms of pairs, what `jacobians.structured_jacobians` gives.

| question | function |
|---|---|
| all singular values of dh_t/dh_k, recorded every few steps | `log_singular_values` |
| the same with an error of every value | `log_singular_values(…, errors=True)` |
| the same with their directions | `singular_decomposition` |
| Lyapunov exponents, their standard errors, Kaplan-Yorke dimension, entropy rate | `lyapunov_exponents` |
| the same from a cell, any number of steps in constant memory | `stream_exponents` |
| the directions that grow at each exponent, carried by the chain | `covariant_vectors` |
| the same from a cell, with checkpoints | `stream_covariant_vectors` |
| how far expanding and contracting directions are from a tangency | `subspace_angles` |
| do sequences or initial states differ | `pool_exponents` |
| the largest few, for a net whose Jacobians do not fit in memory | `leading_singular_values` (jvp and vjp only) |
| Frobenius and spectral norms of dh_t/dh_k for all pairs | `pair_norms` |
| what W alone, or the norms of single steps, say about vanishing, and what is true, in words | `bounds` |
| an exponent as a training loss | `log_growth` |
| does the forward pass in parallel over time pay | `newton_outlook` |
| how far can the adjoint be carried forward in time | `error_horizon` |

>>> import jax, jax.numpy as jnp
>>> from jaxbptt import spectra
>>> chain = jax.random.normal(jax.random.key(0), (200, 8, 8)) / 8**0.5                # J_1 … J_200
>>> log_sigma = spectra.log_singular_values(chain, every=50)                          # ln σ_i(dh_t/dh_0), t = 50 … 200
>>> growth = spectra.lyapunov_exponents(chain, k=3)                                   # nats per step
>>> bool(jnp.all(jnp.abs(growth.exponents - log_sigma[-1, :3] / 200) < 0.1))
True
>>> found = spectra.singular_decomposition(chain, start=10, stop=50)                  # found.left[0], .right[0]
>>> pairs = spectra.pair_norms(chain)                                                 # [t, k]
>>> bool(jnp.abs(pairs.log_spectral[50, 10] - found.log_sigma[0, 0]) < 1e-3)
True
>>> spectra.bounds(chain).diagnosis()[0].split(":")[0]
'The gradient vanished'
"""

from jaxbptt.spectra._bounds import Bounds, bounds
from jaxbptt.spectra.covariant import CovariantVectors, covariant_vectors, stream_covariant_vectors
from jaxbptt.spectra.exponents import lyapunov_exponents, stream_exponents
from jaxbptt.spectra.growth import log_growth
from jaxbptt.spectra.horizon import ErrorHorizon, error_horizon
from jaxbptt.spectra.matrix_free import LeadingSVD, leading_singular_values
from jaxbptt.spectra.newton import NewtonOutlook, newton_outlook
from jaxbptt.spectra.norms import PairNorms, pair_norms
from jaxbptt.spectra.singular_values import LogSVD, SingularValues, log_singular_values, singular_decomposition
from jaxbptt.spectra.statistics import (
    LyapunovExponents,
    PooledExponents,
    entropy_rate,
    kaplan_yorke_dimension,
    pool_exponents,
)
from jaxbptt.spectra.subspaces import SubspaceAngles, subspace_angles

__all__ = [
    "Bounds",
    "CovariantVectors",
    "ErrorHorizon",
    "LeadingSVD",
    "LogSVD",
    "LyapunovExponents",
    "NewtonOutlook",
    "PairNorms",
    "PooledExponents",
    "SingularValues",
    "SubspaceAngles",
    "bounds",
    "covariant_vectors",
    "entropy_rate",
    "error_horizon",
    "kaplan_yorke_dimension",
    "leading_singular_values",
    "log_growth",
    "log_singular_values",
    "lyapunov_exponents",
    "newton_outlook",
    "pair_norms",
    "pool_exponents",
    "singular_decomposition",
    "stream_covariant_vectors",
    "stream_exponents",
    "subspace_angles",
]
