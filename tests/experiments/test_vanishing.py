import json
import sys

import numpy as np
import pytest

from experiments import __main__ as entry
from experiments import chaos, precision, vanishing

SMALL = {
    "vanishing": ["--size", "4", "--length", "24"],
    "chaos": ["--size", "16", "--length", "40", "--transient", "10", "--nets", "2"],
    "precision": ["--hidden", "6", "--length", "24", "--records", "12", "--gain", "1.5"],
}
WORDS = {
    "vanishing": ("‖J^40‖ of the symmetric 100 × 100 net: 0.0148 for radius 0.9, 1 for radius 1, 45.3 for radius 1.1",),
    "chaos": ("tanh, N = 16: ", "λ_1 0.310249 in the mean field", "0.309583 published", "gru, N = 4: "),
    "precision": ("graded, float64 ", "rule of thumb", "graded float64 against 250 digits"),
}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """name -> (arrays, summary, stdout) of a tiny run from the command line."""
    cache = {}

    def run(name, capsys):
        if name not in cache:
            out = tmp_path_factory.mktemp(name)
            assert entry.main([name, *SMALL[name], "--out", str(out)]) == 0
            assert {path.name for path in out.iterdir()} == {"config.json", "arrays.npz", "summary.json", "figure.png"}
            assert (out / "figure.png").read_bytes().startswith(b"\x89PNG")
            with np.load(out / "arrays.npz", allow_pickle=False) as file:
                arrays = dict(file)
            cache[name] = arrays, json.loads((out / "summary.json").read_text()), capsys.readouterr().out
        return cache[name]

    return run


@pytest.mark.parametrize("name", SMALL)
def test_small_runs_say_what_they_found(name, small, capsys):
    _, _, said = small(name, capsys)
    for words in WORDS[name]:
        assert words in said


def test_vanishing_measures_every_cell_and_scheme(small, capsys):
    arrays, summary, _ = small("vanishing", capsys)
    for cell in vanishing.CELLS:
        for scheme in vanishing.SCHEMES:
            get = lambda field, name=f"{cell}, {scheme}": arrays[f"{name}.{field}"]  # noqa: E731
            assert get("exponents").shape == get("standard_error").shape == (13, 1)
            assert get("log_singular_values").shape == (3, 24, 4)
            np.testing.assert_array_equal(get("steps"), np.arange(1, 25))
            assert get("jacobian_eigenvalues").shape == (13, 8, 4)
            assert np.isfinite(get("powers")).all() == (cell == "elman")
            assert np.isfinite(get("carry")).all() == (cell != "elman")
            assert np.isfinite(get("mean_field")).all() == (cell == "elman" and scheme == "gaussian")
            if cell == "elman":
                assert (get("exponents")[:, 0] <= get("bound") + 1e-12).all()
                assert (get("norms") <= get("bound") + 1e-12).all()
                assert (get("radii") <= get("norms") + 1e-12).all()
    np.testing.assert_allclose(arrays["elman, orthogonal.powers"], np.log(vanishing.GAINS), atol=1e-12)
    np.testing.assert_allclose(arrays["elman, identity.bound"], np.log(vanishing.GAINS), atol=1e-12)
    norms = summary["symmetric_norms"]
    np.testing.assert_allclose([norms["0.9"], norms["1"], norms["1.1"]], [0.9**40, 1, 1.1**40], rtol=1e-12)


def fake_sweep(top, *, size=3):
    gains, steps = np.array(vanishing.GAINS), np.arange(1, 6)
    exponents = np.stack([top, top - 1, np.full_like(top, -np.inf)], axis=1)[:, :size]
    values = steps[None, :, None] * exponents[list(vanishing.SHOWN)][:, None, :]
    nothing = np.full(len(gains), np.nan)
    circle = np.exp(1j * np.linspace(0, 6, size))
    return vanishing.Sweep(
        gains=gains,
        exponents=exponents,
        standard_error=np.full_like(exponents, 0.01),
        steps=steps,
        log_singular_values=values,
        weight_eigenvalues=gains[:, None] * circle,
        jacobian_eigenvalues=np.broadcast_to(gains[:, None, None] * circle, (len(gains), 2, size)),
        powers=np.log(gains),
        bound=np.log(gains) + 0.2,
        mean_field=nothing,
        carry=nothing,
        norms=np.where(gains < 1.5, top, top + 1),
        radii=top,
    )


LOG_GAINS = np.log(vanishing.GAINS)


@pytest.mark.parametrize(
    ("top", "crossing", "words"),
    [
        (LOG_GAINS - np.log(1.2), 1.2, "vanishing below gain 1.20, exploding above"),
        (LOG_GAINS - 5, None, "vanishing at every gain, 0.25 to 4"),
        (LOG_GAINS + 5, None, "exploding at every gain, 0.25 to 4"),
        (1 - LOG_GAINS, None, "exploding at the smallest gain, but not at every one"),
        (0.5 - np.abs(LOG_GAINS), np.exp(-0.5), "vanishing below gain 0.61, either above"),
    ],
)
def test_the_verdict_on_a_sweep(top, crossing, words):
    summary = vanishing.summarise(fake_sweep(top))
    assert summary["crossing"] == (None if crossing is None else pytest.approx(crossing))
    assert summary["verdict"] == words
    holds = summary["theory_holds"]
    assert holds["radii"] == [0.25, 4]
    assert holds["norms"] == pytest.approx([0.25, 2 ** (1 / 3)])
    assert set(holds) == {"powers", "bound", "norms", "radii"}


@pytest.mark.parametrize(
    ("right", "run"),
    [
        ([0] * 5, None),
        ([1, 0, 1, 1, 0], [3, 4]),
        ([1, 1, 0, 0, 1], [1, 2]),
        ([1] * 5, [1, 5]),
        ([0, 0, 0, 0, 1], [5, 5]),
    ],
)
def test_the_longest_run(right, run):
    assert vanishing._longest_run(np.array(right, bool), np.arange(1, 6)) == run


def test_vanishing_plots_arrays(tmp_path):
    results = {f"elman, {scheme}": fake_sweep(LOG_GAINS - 0.1) for scheme in vanishing.SCHEMES}
    vanishing.plot(results, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_chaos_measures_every_net(small, capsys):
    arrays, summary, _ = small("chaos", capsys)
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
    return chaos.Transition(np.array(size), gains, exponents, error, rest + size / 4, rest, rest + 1, rest)


def test_chaos_plots_and_says_what_the_arrays_hold(tmp_path):
    results = {f"tanh, N = {size}": fake_transition(chaos.GAINS, size, 1.3) for size in (4, 8, 16)}
    results |= {f"{name}, N = 4": fake_transition(chaos.GATED_GAINS, 4, 99.0) for name in ("lstm", "gru")}
    chaos.plot(results, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000
    said = chaos.in_words("tanh, N = 8", chaos.summarise(results["tanh, N = 8"]))
    expected = np.log(3 / 1.3)
    assert said == f"tanh, N = 8: chaotic from gain 1.5; g = 3: λ_1 {expected:.3f} ± 0.010, D_KY/N 0.250 ± 0.000"
    assert chaos.in_words("gru, N = 4", chaos.summarise(results["gru, N = 4"])) == "gru, N = 4: not chaotic at any gain"


def test_precision_shows_who_keeps_the_digits(small, capsys):
    arrays, summary, _ = small("precision", capsys)
    assert arrays["graded, float64.kept"].shape == (12, 6)
    assert arrays["graded, float64.kept"].min() > 9
    assert arrays["graded, float32.kept"].min() > 2
    assert arrays["assembled, float32.kept"][-1, -1] < 1
    assert arrays["assembled, float32.kept"][0].min() > 2
    assert summary["error_against_mpmath"] < 1e-10
    for name in precision.COLOURS:
        rates = arrays["graded, float64.log_values"][-1] / 24
        eps = np.finfo(name.split(", ")[1]).eps
        assert summary[name]["rule_of_thumb"] == pytest.approx(-np.log(eps) / (rates[0] - rates[-1]), rel=1e-3)


def test_digits_kept():
    truth = np.array([0.0, -900.0, -np.inf, -np.inf, 1.0, 2.0])
    got = np.array([np.log1p(1e-5), -900.0, -np.inf, -30.0, np.nan, 50.0])
    np.testing.assert_allclose(precision.digits_kept(got, truth), [5, 16, 16, 0, 0, 0], atol=1e-9)


@pytest.mark.parametrize(
    ("last", "lost_at"),
    [([9, 9, 9, 9], None), ([9, 9, 0, 0], 30), ([9, 0, 9, 0], 40), ([0, 0, 0, 0], 10), ([0, 9, 9, 9], None)],
)
def test_when_the_smallest_value_is_lost_for_good(last, lost_at, tmp_path):
    kept = np.stack([np.full(4, 15.0), np.array(last, float)], axis=1)
    horizons = np.array([np.inf, 12.0])
    digits = precision.Digits(np.array([10, 20, 30, 40]), kept, np.zeros_like(kept), horizons)
    results = dict.fromkeys(precision.COLOURS, digits)
    summary = precision.summarise(results)["graded, float32"]
    assert summary["smallest_lost_at"] == lost_at
    assert summary["right_at_end"] == 1 + (last[-1] > 0)
    precision.plot(results, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_without_mpmath_the_check_is_skipped(monkeypatch):
    monkeypatch.setitem(sys.modules, "mpmath", None)
    assert precision.check_by_arbitrary_precision(1.5, 0) is None


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["vanishing", "--size", "0"], "size: got 0, expected at least 2"),
        (["vanishing", "--length", "9999999"], "length: got T = 9999999, expected at most"),
        (["chaos", "--nets", "1"], "nets: got 1, expected at least 2"),
        (["chaos", "--size", "4"], "size: got 4, expected at least 8"),
        (["precision", "--gain", "nan"], "gain: got nan, expected a positive number"),
        (["precision", "--records", "0"], "records: got 0, expected at least 1"),
    ],
)
def test_bad_arguments_get_one_line(arguments, line, tmp_path, capsys):
    assert entry.main([*arguments, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert line in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
