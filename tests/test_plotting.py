"""Pictures show the numbers they are given."""

import io

import numpy as np
import pytest
from matplotlib.figure import Figure

from jaxbptt import plotting, report


def drawn(draw):
    figure = Figure(layout="constrained")
    ax = figure.subplots()
    draw(ax)
    figure.savefig(io.BytesIO(), format="png")
    return ax


def test_singular_values_leave_out_minus_infinity_and_shade_the_noise():
    values = np.log(10) * np.array([[0.0, -20, -np.inf], [-1, -40, -np.inf]])
    ax = drawn(lambda ax: plotting.singular_values(ax, [1, 2], values, epsilon=1e-16))
    lines = {tuple(line.get_ydata()) for line in ax.lines if len(line.get_ydata()) == 2}
    assert (0.0, -1.0) in lines
    assert len(ax.collections) == 1


def test_terms_table_shows_the_lower_triangle():
    norms = np.tril(np.full((4, 4), 1e-3))
    norms[3, 0] = 0
    ax = drawn(lambda ax: plotting.terms_table(ax, norms, reach=2))
    shown = np.asarray(ax.images[0].get_array())
    assert np.isnan(shown[0, 1])
    assert shown[1, 0] == -3
    assert shown[3, 0] == -15


def test_lag_profile_marks_the_reach():
    ax = drawn(lambda ax: plotting.lag_profile(ax, [3.0, 1.0, 0.0], {0.5: 0, 0.99: 1}))
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["50 % within 0", "99 % within 1"]
    np.testing.assert_allclose(ax.lines[0].get_ydata()[:2], [0.75, 0.25])


SUMMARY = {
    "proved": True,
    "worst_relative_error": 4e-16,
    "trend": "vanishing",
    "rate_per_step": -np.log(10),
    "rate_intercept": 0.0,
    "sequences": None,
    "dtype": "float64",
    "reach": {"0.5": 0, "0.9": 1, "0.99": 1},
    "saliency_reach": {"0.5": 0, "0.9": 1, "0.99": 2},
    "missing": {"norms": "a table is too large", "profile": "no numbers", "log_saliency": "the inputs are int32"},
}


def whole(**changes):
    """σ_1 = 10^−t; the second value leaves the axis, the third is zero, the fourth not known."""
    steps = np.arange(1, 11)
    values = np.log(10) * np.outer(steps, [-1.0, -6.0, -np.inf, np.nan])
    summary = SUMMARY | {name: value for name, value in changes.items() if name in SUMMARY}
    norms = np.tril(np.full((10, 10), 1e-3))
    logs = np.log(10) * -np.arange(10.0)
    fields = {
        "log_sigma": values,
        "log_sigma_error": np.ones_like(values),
        "exponents": np.ones(4),
        "exponents_error": np.ones(4),
        "norms": norms,
        "profile": norms[:, 0],
        "log_saliency": np.log(10) * norms,
        "log_saliency_profile": logs,
        "recall_density": np.linspace(1, 0, 10),
    }
    fields |= {name: value for name, value in changes.items() if name not in SUMMARY}
    return report.XRay(summary, ["A verdict."], steps, **fields)


def texts(ax):
    legend = ax.get_legend()
    return [text.get_text() for text in [*ax.texts, *(legend.get_texts() if legend else [])]]


def test_a_report_has_one_scale_a_row():
    steep = whole(rate_per_step=-2 * np.log(10), proved=False)
    figure = plotting.xray(whole(), steep, names=["one", "two 2"])
    figure.savefig(io.BytesIO(), format="png")
    grid = np.array(figure.axes).reshape(4, 3)
    for row in grid[:, :2]:
        assert row[0].get_ylim() == row[1].get_ylim()
    assert grid[0, 0].get_ylim()[0] == pytest.approx(-40, abs=2)
    assert "1 of 4" not in texts(grid[0, 0])
    assert texts(grid[0, 0])[0] == "2 of 4 values end below\n1 are not known"
    assert texts(grid[0, 0])[1:] == [r"$\sigma_1$", "fitted slope", "noise in an assembled product"]
    slopes = [line for line in grid[0, 1].lines if line.get_label() == "fitted slope"]
    np.testing.assert_allclose(slopes[0].get_ydata(), [-10, -20])
    assert grid[0, 0].get_title().endswith("gradient proved to 4e−16\nvanishing, −1 decades per step")
    assert "NOT proved" in grid[0, 1].get_title()
    assert [image.get_clim() for image in (grid[1, 0].images[0], grid[1, 1].images[0])] == [(-15, -3), (-15, -3)]
    assert "decades" not in grid[2, 0].get_ylabel()


def test_what_a_report_lacks_is_said_in_words():
    nothing = ("log_sigma", "exponents", "norms", "profile", "log_saliency", "log_saliency_profile", "recall_density")
    lacking = whole(**dict.fromkeys(nothing), rate_per_step=np.nan, trend="unknown", sequences=5)
    lacking.summary["measured_sequences"] = 5
    figure = plotting.xray(lacking)
    assert figure._repr_png_().startswith(b"\x89PNG")  # what a notebook shows
    said = [" ".join(texts(ax)).replace("\n", " ") for ax in figure.axes]
    assert said == [
        "singular values: not computed (not known)",
        "the (t, k) table: not computed (a table is too large)",
        "sums by lag: not computed (no numbers)",
        "input saliency: not computed (the inputs are int32)",
    ]
    assert figure.get_suptitle() == "gradient proved to 4e−16;  unknown;  medians of 5 sequences"


@pytest.mark.parametrize(
    ("xrays", "names", "error"),
    [((), None, ValueError), ((whole(),), ["a", "b"], ValueError), ((np.zeros(3),), None, TypeError)],
)
def test_what_is_no_report_is_not_drawn(xrays, names, error):
    with pytest.raises(error, match="xrays: got"):
        plotting.xray(*xrays, names=names)
