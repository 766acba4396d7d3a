"""Draw arrays on given matplotlib Axes, or a whole report. Only this module imports matplotlib; it knows no cell."""

import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

__all__ = ["lag_profile", "singular_values", "terms_table", "xray"]

LN10 = np.log(10)
XRAY_FIELDS = "summary", "steps", "log_sigma", "norms", "profile", "log_saliency_profile", "recall_density"
DECADES = 40.0  # of singular values that a report's figure shows
SIGMA_1, SLOPE, NOISE = r"$\sigma_1$", "fitted slope", "noise in an assembled product"
LEAST_SHARE = 1e-9  # of a lag


class NotebookFigure(Figure):
    """A Figure that a notebook shows by itself: Jupyter knows how to show others only once pyplot has drawn one."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png")
        return buffer.getvalue()


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
      TypeError: a result object in place of its array.
      ValueError: another shape.

    Example:
      >>> import numpy as np
      >>> from matplotlib.figure import Figure
      >>> from jaxbptt import plotting
      >>> ax, steps = Figure().subplots(), np.arange(1, 101)
      >>> plotting.singular_values(ax, steps, steps[:, None] * np.log([0.9, 0.5]), epsilon=2**-23)
      >>> len(ax.lines), ax.get_xlabel()  # σ_1, σ_2 and the line of σ = 1
      (3, 'step t')
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
        below = floor > bottom
        ax.fill_between(steps, bottom, floor, where=below, color="crimson", alpha=0.1, linewidth=0, label=NOISE)
        ax.set_ylim(bottom=bottom)
        ax.legend(frameon=False, loc="lower left", fontsize="small")
    ax.spines[["top", "right"]].set_visible(False)


def terms_table(
    ax: Axes,
    norms: npt.ArrayLike,
    *,
    reach: float | None = None,
    decades: float = 12.0,
    top: float | None = None,
) -> AxesImage:
    """Draw the (t, k) table as log10 ‖term‖, t downward, k to the right, over the top `decades` decades.

    Args:
      ax: where to draw.
      norms: [T, T], row t−1, column k−1; zeros are left blank.
      reach: a lag to mark by a line along t − k = reach.
      decades: terms that are smaller than the largest by more than this take the palest colour.
      top: log10 of what takes the darkest colour; None: the largest term.

    Returns:
      The image, for a colour bar.

    Raises:
      TypeError: a result object in place of its array.
      ValueError: another shape.

    Example:
      >>> import numpy as np
      >>> from matplotlib.figure import Figure
      >>> from jaxbptt import plotting
      >>> t, k = np.indices((30, 30))
      >>> image = plotting.terms_table(Figure().subplots(), np.tril(0.5 ** (t - k)), reach=3)
      >>> image.get_array().shape, image.get_clim()  # log10: from the top down by `decades`
      ((30, 30), (-12.0, 0.0))
    """
    norms = _take("norms", norms, 2, "[T, T]")
    with np.errstate(divide="ignore"):
        log10 = np.where(norms > 0, np.log10(norms), np.nan)
    if top is None:
        top = _top(log10)
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
        ax.plot(*line, color="#1f9e89", linewidth=1.4, linestyle="--", label=f"t − k = {reach:g}")
        ax.legend(frameon=False, loc="upper right", fontsize="small")
    ax.set(xlabel="θ used at step k", ylabel="loss at step t")
    ax.spines[["top", "right"]].set_visible(False)
    return image


def lag_profile(ax: Axes, profile: npt.ArrayLike, reach: Mapping[float, float]) -> None:
    """Draw Σ_t ‖term (t, t−ℓ)‖ over the lag ℓ, as a share of the whole, with the reach marked.

    Args:
      ax: where to draw.
      profile: [T] by lag.
      reach: quantile -> lag, e.g. {0.5: 1, 0.9: 4}.

    Returns:
      None.

    Raises:
      TypeError: a result object in place of its array.
      ValueError: another shape.

    Example:
      >>> import numpy as np
      >>> from matplotlib.figure import Figure
      >>> from jaxbptt import plotting
      >>> ax = Figure().subplots()
      >>> plotting.lag_profile(ax, 0.5 ** np.arange(30), {0.5: 0, 0.9: 3})
      >>> [text.get_text() for text in ax.get_legend().get_texts()]
      ['50 % within 0', '90 % within 3']
    """
    profile = _take("profile", profile, 1, "[T]")
    share = profile / max(profile.sum(), np.finfo(float).tiny)
    lags = np.arange(len(share))
    ax.set(xscale="log", yscale="log", xlim=(0.93, len(share) + 1))
    ax.set_ylim(max(LEAST_SHARE, share[share > 0].min(initial=1) / 2), 2)
    ax.plot(lags + 1, np.where(share > 0, share, np.nan), color="#31688e", linewidth=2.2)
    shades = np.linspace(0.6, 0.0, len(reach))
    for (quantile, lag), shade in zip(reach.items(), shades, strict=True):
        label = f"{100 * quantile:g} % within {lag:g}"
        ax.axvline(lag + 1, color=str(shade), linewidth=1.2, linestyle="--", label=label)
    ticks = [lag for lag in (0, 1, 3, 10, 30, 100, 300, 1000, 3000, 10000) if lag < len(share)]
    ax.set_xticks([lag + 1 for lag in ticks], [str(lag) for lag in ticks])
    ax.minorticks_off()
    ax.set(xlabel="lag t − k (steps)", ylabel="share of gradient norm")
    ax.legend(facecolor="white", framealpha=1, edgecolor="none", loc="lower left", fontsize="small")
    ax.spines[["top", "right"]].set_visible(False)


def xray(*xrays: Any, names: Sequence[str] | None = None) -> Figure:
    """Singular values, the (t, k) table, its sums by lag, and what the losses feel of the inputs: one column a model.

    A single model has them two by two. All logs are decades, and a row has one scale, so that models can be compared.
    σ_1 is bold, the slope that the verdict gives dashed. What was not computed is said in words.

    Args:
      *xrays: what `report.xray` or `report.load` returns, one or more.
      names: a name for each; None: "model 1", "model 2", …, and none for a single one.

    Returns:
      A matplotlib Figure, which no pyplot knows: a notebook shows it, `figure.savefig(path)` writes it.

    Raises:
      TypeError: anything else than XRays.
      ValueError: no XRay; another number of names.

    Example:
      >>> import jax.numpy as jnp, jaxbptt
      >>> from jaxbptt import models, plotting
      >>> model = models.make_model(lambda w, h, x: w * h + x, jnp.zeros_like, lambda w, h: h, models.squared_error)
      >>> found = jaxbptt.xray(model, jnp.array(2.0), jnp.array([1.0, 0.0, 0.0, 0.0]), jnp.zeros(4))
      >>> len(plotting.xray(found).axes)  # 2 × 2 and a colour bar
      5
    """
    for each in xrays:
        if not all(hasattr(each, field) for field in XRAY_FIELDS):
            raise TypeError(f"xrays: got {type(each).__name__}, expected XRay (from jaxbptt.xray or report.load)")
    if not xrays or (names is not None and len(names) != len(xrays)):
        got = "none" if not xrays else f"{len(xrays)} and {len(names or ())} names"
        raise ValueError(f"xrays: got {got}, expected at least one, and a name for each")
    if names is None:
        names = [""] if len(xrays) == 1 else [f"model {i + 1}" for i in range(len(xrays))]
    alone = len(xrays) == 1
    figure = NotebookFigure(figsize=(11.5, 8.4) if alone else (1.4 + 4.6 * len(xrays), 14.5), layout="constrained")
    if alone:
        columns, bar = [figure.subplots(2, 2).ravel()], {}
    else:
        widths = [*[1.0] * len(xrays), 0.05]
        axes = figure.subplots(4, len(widths), squeeze=False, width_ratios=widths)
        columns, bar = list(axes.T[:-1]), {"cax": axes[1, -1]}
        for ax in axes[:, -1]:
            ax.set_axis_off()
    bounds = _bounds([each.log_sigma for each in xrays])
    tops = [_top(np.log10(each.norms[each.norms > 0])) for each in xrays if each.norms is not None]
    images = []
    for column, each, name in zip(columns, xrays, names, strict=True):
        heading = _heading(name, each.summary)
        if alone:
            figure.suptitle(heading.replace("\n", ";  "), fontsize="large")
        else:
            column[0].set_title(heading, fontsize="medium")
        _growth(column[0], each, bounds)
        images.append(_table(column[1], each, max(tops, default=0.0)))
        _profile(column[2], each)
        _saliency(column[3], each)
        for ax in column[2:]:
            ax.set_ylim(LEAST_SHARE, 2)
    shown = [image for image in images if image is not None]
    if shown:
        place = {"ax": columns[0][1]} if alone else bar
        colour_bar = figure.colorbar(shown[0], **place, label=r"$\log_{10}$ ‖term (t, k) of dC/dθ‖")
        colour_bar.ax.set_axis_on()
    return figure


def _top(log10):
    """The largest finite one, or 0."""
    finite = log10[np.isfinite(log10)]
    return float(finite.max()) if finite.size else 0.0


def _bounds(tables):
    """The axis of log10 σ that all models share: DECADES at most, but the whole of every σ_1."""
    tables = [table / LN10 for table in tables if table is not None]
    finite = np.concatenate([np.zeros(1), *(table[np.isfinite(table)] for table in tables)])
    leading = [table[:, 0][np.isfinite(table[:, 0])].min(initial=0) for table in tables]
    top = finite.max()
    bottom = max(finite.min(), min(top - DECADES, min(leading, default=0.0) - 2))
    margin = 0.03 * max(top - bottom, 1.0)
    return bottom - margin, top + 4 * margin  # room for the legend


def _heading(name, summary):
    lines = [rf"$\bf{{{name}}}$".replace(" ", r"\ ")] if name else []
    worst = f"{summary['worst_relative_error']:.0e}".replace("e-0", "e-")
    lines.append(f"gradient proved to {worst}" if summary["proved"] else "gradient NOT proved")
    rate = summary["rate_per_step"] / LN10
    lines.append(summary["trend"] + ("" if np.isnan(rate) else f", {rate:+.3g} decades per step"))
    if summary["sequences"] is not None:
        lines.append(f"medians of {summary['measured_sequences']} sequences")
    return "\n".join(lines).replace("-", "−")


def _growth(ax, each, bounds):
    if each.log_sigma is None:
        _say(ax, each, "log_sigma", "singular values")
        return
    singular_values(ax, each.steps, each.log_sigma, epsilon=np.finfo(each.summary["dtype"]).eps)
    rate, intercept = (each.summary[name] / LN10 for name in ("rate_per_step", "rate_intercept"))
    if np.isfinite(rate):
        ends = np.array([each.steps[-1] / 2, each.steps[-1]])
        ax.plot(ends, rate * ends + intercept, color="darkorange", linewidth=1.6, linestyle="--", label=SLOPE)
    ax.plot([], [], color=mpl.colormaps["viridis"](0.0), linewidth=2.2, label=SIGMA_1)
    last = each.log_sigma[-1] / LN10
    below, unknown = int(np.sum(last < bounds[0])), int(np.isnan(last).sum())
    notes = [f"{below} of {len(last)} values end below"] * bool(below) + [f"{unknown} are not known"] * bool(unknown)
    if notes:
        box = {"facecolor": "white", "alpha": 0.85, "edgecolor": "none", "pad": 2}
        place = {"transform": ax.transAxes, "ha": "right", "va": "bottom", "fontsize": "small"}
        ax.text(0.99, 0.02, "\n".join(notes), bbox=box, **place)
    ax.set_ylim(bounds)
    handles = {line.get_label(): line for line in ax.get_legend_handles_labels()[0]}
    shown = [label for label in (SIGMA_1, SLOPE, NOISE) if label in handles]
    ax.legend(
        [handles[label] for label in shown],
        shown,
        frameon=False,
        loc="upper right",
        fontsize="small",
        ncols=3,
        columnspacing=1.2,
        handlelength=1.5,
        borderpad=0.1,
    )


def _table(ax, each, top):
    if each.norms is None:
        _say(ax, each, "norms", "the (t, k) table")
        return None
    return terms_table(ax, each.norms, reach=each.summary["reach"]["0.9"], top=top)


def _profile(ax, each):
    if each.profile is None:
        _say(ax, each, "profile", "sums by lag")
        return
    lag_profile(ax, each.profile, {float(quantile): lag for quantile, lag in each.summary["reach"].items()})


def _saliency(ax, each):
    """The share of each lag in Σ‖∂L_t/∂x_k‖, and the share of losses that still feel the input."""
    if each.log_saliency_profile is None:
        _say(ax, each, "log_saliency", "input saliency")
        return
    logs = each.log_saliency_profile
    reach = {float(quantile): lag for quantile, lag in each.summary["saliency_reach"].items()}
    lag_profile(ax, np.exp(logs - LN10 * _top(logs / LN10)), reach)
    felt = np.where(each.recall_density > 0, each.recall_density, np.nan)
    ax.plot(np.arange(len(felt)) + 1, felt, color="darkorange", linewidth=1.6, label=r"losses that still feel $x_k$")
    ax.set(ylabel=r"share of $\|\partial L_t/\partial x_k\|$")
    ax.legend(facecolor="white", framealpha=1, edgecolor="none", loc="lower left", fontsize="small")


def _say(ax, each, field, what):
    """Words in place of a picture."""
    words = textwrap.fill(f"{what}: not computed ({each.summary['missing'].get(field, 'not known')})", 36)
    ax.text(0.5, 0.5, words, transform=ax.transAxes, ha="center", va="center", color="0.35")
    ax.set_axis_off()
