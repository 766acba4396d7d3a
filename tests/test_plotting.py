"""Pictures show the numbers they are given."""

import io

import numpy as np
from matplotlib.figure import Figure

from jaxbptt import plotting


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
