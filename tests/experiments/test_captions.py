import matplotlib.figure
import pytest

from experiments.captions import add_caption


@pytest.mark.parametrize("size", [9, 14])
def test_a_caption_is_as_wide_as_its_figure(size):
    figure = matplotlib.figure.Figure(figsize=(8, 3), layout="constrained")
    figure.subplots()
    words = "Lines: the median of five keys, at each net's best rate. " * 6
    add_caption(figure, words, size)
    drawn = figure._supxlabel
    assert " ".join(drawn.get_text().split("\n")) == words.strip()
    width = drawn.get_window_extent().width / figure.bbox.width
    assert 0.75 < width < 0.99
