import numpy as np
import pytest

from experiments import chaos

from .runs import WITH_SUMMARY, run_tiny


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return run_tiny("chaos", "--size 16 --length 40 --transient 10 --nets 2", tmp_path_factory.mktemp("chaos"))


def test_a_small_run_says_what_it_found(small):
    assert small.code == 0
    assert small.files == WITH_SUMMARY
    for words in ("tanh, N = 16: ", "λ_1 0.310249 in the mean field", "0.309583 published", "gru, N = 4: "):
        assert words in small.said


def test_every_net_is_measured(small):
    arrays, summary = small.arrays, small.summary
    for name, gains, size in (("tanh, N = 16", chaos.GAINS, 16), ("lstm, N = 4", chaos.GATED_GAINS, 4)):
        assert arrays[f"{name}.exponents"].shape == (len(gains), 2, size)
        assert arrays[f"{name}.dimension"].shape == arrays[f"{name}.entropy"].shape == (len(gains), 2)
        assert (arrays[f"{name}.interval"] >= 1).all()
        assert (np.diff(arrays[f"{name}.exponents"], axis=2) <= 0).all()
        positive = np.maximum(arrays[f"{name}.exponents"], 0).sum(axis=2)
        np.testing.assert_allclose(arrays[f"{name}.entropy"], positive, atol=1e-12)
    assert (arrays["tanh, N = 16.exponents"][0] < 0).all()  # g = 0.5 is quiet
    assert arrays["tanh, N = 16.exponents"][-1, :, 0].max() > 0  # g = 5 is not
    assert summary["mean_field"]["3"] == pytest.approx(0.310249, abs=1e-6)


def fake_transition(gains, size, zero):
    gains = np.array(gains)
    top = np.log(gains)[:, None] - np.log(zero) + np.array([-0.01, 0.01])
    exponents = top[:, :, None] - np.arange(size) * 0.5
    exponents[..., -1] = -np.inf
    rest = np.zeros_like(top)
    error = np.zeros_like(exponents)
    steps = np.array(40), np.array(10)
    return chaos.Transition(np.array(size), gains, exponents, error, rest + size / 4, rest, rest + 1, rest, *steps)


def test_figure_and_words_are_of_the_arrays(tmp_path):
    results = {f"tanh, N = {size}": fake_transition(chaos.GAINS, size, 1.3) for size in (4, 8, 16)}
    results |= {f"{name}, N = 4": fake_transition(chaos.GATED_GAINS, 4, 99.0) for name in ("lstm", "gru")}
    chaos.plot(results, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000
    said = chaos.in_words("tanh, N = 8", chaos.judge(results["tanh, N = 8"]))
    expected = np.log(3 / 1.3)
    assert said == f"tanh, N = 8: chaotic from gain 1.5; g = 3: λ_1 {expected:.3f} ± 0.010, D_KY/N 0.250 ± 0.000"
    gru = results["gru, N = 4"]
    assert chaos.in_words("gru, N = 4", chaos.judge(gru)) == "gru, N = 4: not chaotic at any gain"
    gru.exponents[1, 0] = np.nan  # of one net
    said = chaos.in_words("gru, N = 4", chaos.judge(gru))
    assert said == f"gru, N = 4: not chaotic at any gain (not known for rounding at gain {chaos.GATED_GAINS[1]:g})"
    tanh = results["tanh, N = 8"]
    unknown = chaos.judge(tanh._replace(dimension=tanh.dimension * np.nan))
    assert chaos.in_words("tanh, N = 8", unknown).endswith("D_KY/N not known")
