"""One call from a model and its data to a verdict: is the gradient right, and where does it go?"""

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from jaxbptt import _validation
from jaxbptt.models.model import Model
from jaxbptt.report._numbers import summarise
from jaxbptt.report._problem import take_subject
from jaxbptt.report._proof import prove
from jaxbptt.report._spectra import measure_spectra
from jaxbptt.report._storage import read_report, write_report
from jaxbptt.report._tables import measure_tables
from jaxbptt.report._verdict import in_words
from jaxbptt.types import Inputs, Params, State, Targets


@dataclasses.dataclass(frozen=True, eq=False)
class XRay:
    """A model seen through: T steps, N state entries, R records of dh_t/dh_0. `str()` is the verdict.

    A field that was not computed is None, and `summary["missing"]` says why. Logs are natural. Of a batch, arrays hold
    medians over its sequences, entry by entry.

    Attributes:
      summary: plain numbers, words, lists and dicts.
      verdict: sentences.
      steps: [R], t − start of each record; start is 0 unless there are resets.
      log_sigma: [R, values], ln σ_i(dh_t/dh_start), descending; NaN: not known.
      log_sigma_error: [R, values], nats.
      exponents: [N], nats per step.
      exponents_error: [N], their standard errors.
      norms: [T, T], ‖term (t, k)‖ of dC/dθ, row t−1, column k−1.
      profile: [lags], Σ_t ‖term (t, t−ℓ)‖.
      log_saliency: [T, T], ln‖∂L_t/∂x_k‖, row t−1, column k−1.
      log_saliency_profile: [T], ln Σ_t ‖∂L_t/∂x_{t−ℓ}‖.
      recall_density: [T], by lag ℓ: the share of losses that still feel x_{t−ℓ}.

    Example:
      >>> import jax.numpy as jnp, jaxbptt
      >>> from jaxbptt import models
      >>> model = models.make_model(lambda w, h, x: w * h + x, jnp.zeros_like, lambda w, h: h, models.squared_error)
      >>> found = jaxbptt.xray(model, jnp.array(2.0), jnp.array([1.0, 0.0, 0.0, 0.0]), jnp.zeros(4))
      >>> found.log_sigma.shape, found.norms.shape  # records × N, T × T
      ((4, 1), (4, 4))
      >>> found.summary["trend"], found.summary["reach"]["0.9"]
      ('exploding', 2)
    """

    summary: dict[str, Any]
    verdict: list[str]
    steps: Int[np.ndarray, " records"]
    log_sigma: Float[np.ndarray, "records values"] | None
    log_sigma_error: Float[np.ndarray, "records values"] | None
    exponents: Float[np.ndarray, " state"] | None
    exponents_error: Float[np.ndarray, " state"] | None
    norms: Float[np.ndarray, "time time"] | None
    profile: Float[np.ndarray, " lags"] | None
    log_saliency: Float[np.ndarray, "time time"] | None
    log_saliency_profile: Float[np.ndarray, " time"] | None
    recall_density: Float[np.ndarray, " time"] | None

    def __str__(self) -> str:
        return "\n".join(self.verdict)

    def arrays(self) -> dict[str, np.ndarray]:
        """The fields that are arrays and were computed.

        Returns:
          {name of the field: array}.
        """
        fields = {name: getattr(self, name) for name in _ARRAYS}
        return {name: array for name, array in fields.items() if array is not None}

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write arrays.npz, summary.json and figure.png into a folder, which is made if it is not there.

        Args:
          folder: where to write; files of these names are replaced, each whole or not at all.

        Returns:
          None.

        Raises:
          OSError: a folder that cannot be written.
        """
        write_report(Path(folder), self.arrays(), {"summary": self.summary, "verdict": self.verdict}, self)


_ARRAYS = [field.name for field in dataclasses.fields(XRay) if field.name not in ("summary", "verdict")]


def xray(
    model: Model,
    params: Params,
    inputs: Inputs,
    targets: Targets,
    *,
    initial: State | None = None,
    every: int | None = None,
) -> XRay:
    """Prove dC/dθ by every route that the sizes allow, and measure where the gradient goes.

    The proof: reverse mode through the whole computation beside `bptt`, `forward_sensitivity` and `double_sum`, leaf by
    leaf; in place of a route that would take more than about a second, forward mode and the double sum along random
    directions of each leaf. A hand derivation's J_t is compared with automatic differentiation, and is not used further
    where it or `bptt` is wrong.
    Proved means a relative difference of at most 1e-12 in float64 and 1e-4 in float32, about a thousand eps, on every
    leaf (a leaf below 1e-4 of the whole gradient is judged by that: it may be zero by cancellation).

    Then the singular values of dh_t/dh_0 with their errors, Lyapunov exponents, the (t, k) tables of dC/dθ and of
    ∂L_t/∂x_k. A state of N > 512 (or T·N² > 2²⁷) gets its leading singular values alone, from products with the step;
    a long sequence (T > 1024) its norms by lag in place of the tables. The verdict says so. Each stage is one compiled
    program, kept for the next call with the same model and shapes.

    Args:
      model: f, g, L and the reduction. A batch: its sequences (at most 16 of them) are looked at one by one, numbers
        are medians. With resets: spectra are those of the longest stretch without one.
      params: θ, leaves all float32 or all float64.
      inputs: x_1 … x_T, [T, M] or a pytree with leading T; of a batch [T, B, ...].
      targets: y_1 … y_T, leading T; of a batch [T, B, ...].
      initial: h_0 as a constant; None: `model.initial_state(params)`.
      every: steps between records of the singular values; None: about 32 records.

    Returns:
      XRay of NumPy arrays.

    Raises:
      TypeError, ValueError: an argument not as stated, before anything is compiled; a loss or gradient that is NaN or
        inf, with its first step and its cause.

    Example:
      >>> import jax.numpy as jnp, jaxbptt
      >>> from jaxbptt import models
      >>> model = models.make_model(lambda w, h, x: w * h + x, jnp.zeros_like, lambda w, h: h, models.squared_error)
      >>> found = jaxbptt.xray(model, jnp.array(2.0), jnp.array([1.0, 0.0, 0.0, 0.0]), jnp.zeros(4))
      >>> print(found.verdict[1].split(";")[0])
      Exploding: σ_1(dh_t/dh_0) changes by +0.6931 nats per step, doubling time 1.0 steps
      >>> print(found.verdict[3])
      90 % of the gradient comes from at most 2 steps back (50 %: 1, 99 %: 2).

    Reference: Pascanu, Mikolov & Bengio (2013), arXiv:1211.5063.
    """
    if every is not None:
        _validation.require_size("every", every)
    subject = take_subject(model, params, inputs, targets, initial)
    proof = prove(subject)
    if {"bptt", "state_jacobian"} & set(proof.wrong):
        subject = subject._replace(model=subject.model._replace(derivation=None), key=("automatic", subject.key))
    spectra, tables = measure_spectra(subject, every), measure_tables(subject)
    summary = summarise(subject, proof, spectra, tables)
    return XRay(
        summary=summary,
        verdict=in_words(summary),
        steps=spectra.steps,
        log_sigma=_median(spectra.log_sigma),
        log_sigma_error=_median(spectra.error),
        exponents=_median(spectra.exponents),
        exponents_error=_median(spectra.standard_error),
        norms=_median(tables.norms),
        profile=_median(tables.profile),
        log_saliency=_median(tables.log_saliency),
        log_saliency_profile=_median(tables.log_saliency_profile),
        recall_density=_median(tables.recall_density),
    )


def load(folder: str | os.PathLike[str]) -> XRay:
    """What `XRay.save` wrote.

    Args:
      folder: the folder it was saved to.

    Returns:
      XRay, equal to the saved one to the last bit.

    Raises:
      ValueError: a folder that holds no such report.

    Example:
      >>> import pathlib, tempfile, jax.numpy as jnp, jaxbptt
      >>> from jaxbptt import models, report
      >>> model = models.make_model(lambda w, h, x: w * h + x, jnp.zeros_like, lambda w, h: h, models.squared_error)
      >>> found = jaxbptt.xray(model, jnp.array(2.0), jnp.array([1.0, 0.0, 0.0, 0.0]), jnp.zeros(4))
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     found.save(folder)
      ...     sorted(path.name for path in pathlib.Path(folder).iterdir()), report.load(folder).verdict == found.verdict
      (['arrays.npz', 'figure.png', 'summary.json'], True)
    """
    arrays, text = read_report(Path(folder))
    if not isinstance(text, dict) or set(text) != {"summary", "verdict"} or "steps" not in arrays:
        raise ValueError(f"folder: got {folder}, whose files are not those of a report")
    fields: dict[str, Any] = {name: arrays.get(name) for name in _ARRAYS}
    return XRay(**text, **fields)


def _median(arrays):
    """Over the sequences, entry by entry."""
    if arrays is None:
        return None
    with np.errstate(invalid="ignore"):  # −inf beside −inf
        return arrays[0] if len(arrays) == 1 else np.median(arrays, axis=0)
