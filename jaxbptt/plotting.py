"""Draw arrays on given matplotlib Axes. Only this module imports matplotlib; it knows no cell."""

from collections.abc import Mapping

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.image import AxesImage

__all__ = ["lag_profile", "singular_values", "terms_table"]

LN10 = np.log(10)


def _take(name: str, values: npt.ArrayLike, num_axes: int, shape: str) -> np.ndarray:
    """`values` as NumPy floats; raise unless they have this many axes: a result object is not its array."""
    fields = getattr(values, "_fields", ())
    if fields:
        got = type(values).__name__
        raise TypeError(f"{name}: got {got}, expected an array {shape}: one of its fields {', '.join(fields)}")
    array = np.asarray(values, float)
    if array.ndim != num_axes:
        raise ValueError(f"{name}: got shape {list(array.shape)}, expected {shape}")
    return array


def singular_values(ax: Axes, steps: npt.ArrayLike, log_values: npt.ArrayLike, *, epsilon: float | None = None) -> None:
    """Draw every σ_i(dh_t/dh_0) over t as log10, from the largest (dark) to the smallest (light).

    Args:
      ax: where to draw.
      steps: [R] t of each record.
      log_values: [R, N] natural logs, descending; −inf is left out.
      epsilon: eps of a float format: the range below epsilon · σ_1, rounding noise in an assembled product, is shaded.

    Returns:
      None.

    Raises:
      TypeError, ValueError: a result object in place of its array; another shape.
    """
    steps, log10 = _take("steps", steps, 1, "[R]"), _take("log_values", log_values, 2, "[R, N]") / LN10
    if len(steps) != len(log10):
        raise ValueError(f"steps: got {len(steps)}, expected {len(log10)} like log_values")
    log10 = np.where(np.isfinite(log10), log10, np.nan)
    colours = mpl.colormaps["viridis"](np.linspace(0.0, 0.88, log10.shape[1]))
    for i in reversed(range(log10.shape[1])):
        ax.plot(steps, log10[:, i], color=colours[i], linewidth=2.2 if i == 0 else 0.7)
    ax.axhline(0, color="0.6", linewidth=0.8, zorder=0)
    ax.set(xlabel="step t", ylabel=r"$\log_{10}\,\sigma_i(dh_t/dh_0)$", xlim=(0, steps[-1]))
    if epsilon is not None:
        bottom, _ = ax.get_ylim()
        floor = log10[:, 0] + np.log10(epsilon)
        label = "noise in an assembled product"
        below = floor > bottom
        ax.fill_between(steps, bottom, floor, where=below, color="crimson", alpha=0.1, linewidth=0, label=label)
        ax.set_ylim(bottom=bottom)
        ax.legend(frameon=False, loc="lower left", fontsize="small")
    ax.spines[["top", "right"]].set_visible(False)


def terms_table(ax: Axes, norms: npt.ArrayLike, *, reach: int | None = None, decades: float = 12.0) -> AxesImage:
    """Draw the (t, k) table as log10 ‖term‖, t downward, k to the right, over the top `decades` decades.

    Args:
      ax: where to draw.
      norms: [T, T], row t−1, column k−1; zeros are left blank.
      reach: a lag to mark by a line along t − k = reach.
      decades: terms that are smaller than the largest by more than this take the palest colour.

    Returns:
      The image, for a colour bar.

    Raises:
      TypeError, ValueError: a result object in place of its array; another shape.
    """
    norms = _take("norms", norms, 2, "[T, T]")
    with np.errstate(divide="ignore"):
        log10 = np.where(norms > 0, np.log10(norms), np.nan)
    top = np.nanmax(log10) if np.isfinite(log10).any() else 0.0
    lower = np.tril(np.ones_like(norms, bool))
    shown = np.where(lower, np.nan_to_num(np.maximum(log10, top - decades), nan=top - decades), np.nan)
    length = len(norms)
    image = ax.imshow(
        shown,
        cmap="magma_r",
        vmin=top - decades,
        vmax=top,
        extent=(0.5, length + 0.5, length + 0.5, 0.5),
        aspect="auto",
    )
    if reach is not None:
        line = (1, length - reach), (1 + reach, length)
        ax.plot(*line, color="white", linewidth=2.6)
        ax.plot(*line, color="#1f9e89", linewidth=1.4, linestyle="--", label=f"t − k = {reach}")
        ax.legend(frameon=False, loc="upper right", fontsize="small")
    ax.set(xlabel="θ used at step k", ylabel="loss at step t")
    ax.spines[["top", "right"]].set_visible(False)
    return image


def lag_profile(ax: Axes, profile: npt.ArrayLike, reach: Mapping[float, int]) -> None:
    """Draw Σ_t ‖term (t, t−ℓ)‖ over the lag ℓ, as a share of the whole, with the reach marked.

    Args:
      ax: where to draw.
      profile: [T] by lag.
      reach: quantile -> lag, e.g. {0.5: 1, 0.9: 4}.

    Returns:
      None.

    Raises:
      TypeError, ValueError: a result object in place of its array; another shape.
    """
    profile = _take("profile", profile, 1, "[T]")
    share = profile / max(profile.sum(), np.finfo(float).tiny)
    lags = np.arange(len(share))
    ax.loglog(lags + 1, np.where(share > 0, share, np.nan), color="#31688e", linewidth=2.2)
    shades = np.linspace(0.6, 0.0, len(reach))
    for (quantile, lag), shade in zip(reach.items(), shades, strict=True):
        label = f"{100 * quantile:g} % within {lag}"
        ax.axvline(lag + 1, color=str(shade), linewidth=1.2, linestyle="--", label=label)
    ticks = [lag for lag in (0, 1, 3, 10, 30, 100, 300, 1000, 3000, 10000) if lag < len(share)]
    ax.set_xticks([lag + 1 for lag in ticks], [str(lag) for lag in ticks])
    ax.minorticks_off()
    ax.set(xlabel="lag t − k (steps)", ylabel="share of gradient norm", xlim=(0.93, len(share) + 1))
    ax.set_ylim(max(1e-9, share[share > 0].min(initial=1) / 2), 2)
    ax.legend(facecolor="white", framealpha=1, edgecolor="none", loc="lower left", fontsize="small")
    ax.spines[["top", "right"]].set_visible(False)
