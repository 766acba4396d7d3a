import numpy as np
import pytest

from experiments import vanishing
from experiments.nets import SCHEMES
from experiments.vanishing import sweep

from .runs import WITH_SUMMARY, run_tiny

SYMMETRIC = "‖J^40‖ of the symmetric 100 × 100 net: 0.0148 for radius 0.9, 1 for radius 1, 45.3 for radius 1.1"


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return run_tiny("vanishing", "--size 4 --length 24", tmp_path_factory.mktemp("vanishing"))


def test_a_small_run_says_what_it_found(small):
    assert small.code == 0
    assert small.files == WITH_SUMMARY | {"theories.png"}
    read, *sweeps, symmetric = small.said.splitlines()
    assert read.startswith("text: 27 symbols: space, abc")
    assert symmetric == SYMMETRIC
    assert len(sweeps) == len(sweep.NAMES)
    for line, name in zip(sweeps, sweep.NAMES, strict=True):
        assert line.startswith(f"{name}: {small.summary[name]['verdict']}; right within 0.05 nats: ")


def test_every_cell_and_scheme_is_measured(small):
    arrays, summary = small.arrays, small.summary
    for cell in sweep.CELLS:
        for scheme in SCHEMES:
            get = lambda field, name=f"{cell}, {scheme}": arrays[f"{name}.{field}"]
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
    np.testing.assert_allclose(arrays["elman, orthogonal.powers"], np.log(sweep.GAINS), atol=1e-12)
    np.testing.assert_allclose(arrays["elman, identity.bound"], np.log(sweep.GAINS), atol=1e-12)
    norms = summary["symmetric_norms"]
    np.testing.assert_allclose([norms["0.9"], norms["1"], norms["1.1"]], [0.9**40, 1, 1.1**40], rtol=1e-12)


def fake_sweep(top, *, size=3):
    gains, steps = np.array(sweep.GAINS), np.arange(1, 6)
    exponents = np.stack([top, top - 1, np.full_like(top, -np.inf)], axis=1)[:, :size]
    values = steps[None, :, None] * exponents[list(sweep.SHOWN)][:, None, :]
    nothing = np.full(len(gains), np.nan)
    circle = np.exp(1j * np.linspace(0, 6, size))
    return sweep.Sweep(
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


LOG_GAINS = np.log(sweep.GAINS)


@pytest.mark.parametrize(
    ("top", "crossing", "words"),
    [
        (LOG_GAINS - np.log(1.2), 1.2, "vanishing below gain 1.20, exploding above"),
        (LOG_GAINS - 5, None, "vanishing at every gain, 0.25 to 4"),
        (LOG_GAINS + 5, None, "exploding at every gain, 0.25 to 4"),
        (1 - LOG_GAINS, None, "exploding at the smallest gain, but not at every one"),
        (0.5 - np.abs(LOG_GAINS), np.exp(-0.5), "vanishing below gain 0.61, vanishing or exploding above"),
    ],
)
def test_the_verdict_on_a_sweep(top, crossing, words):
    summary = vanishing.judge(fake_sweep(top))
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


def test_what_is_not_known_decides_nothing():
    top = LOG_GAINS - np.log(1.2)
    top[[0, -1]] = np.nan
    summary = vanishing.judge(fake_sweep(top))
    assert summary["verdict"] == ("vanishing below gain 1.20, exploding above; not known for rounding at 2 of 13 gains")
    assert vanishing.judge(fake_sweep(top * np.nan))["verdict"].startswith(
        "nothing is known; not known for rounding at 13"
    )


def test_plot_takes_arrays(tmp_path):
    top = LOG_GAINS - 0.1
    top[-1] = np.nan
    results = {f"elman, {scheme}": fake_sweep(top) for scheme in SCHEMES}
    for plot in (vanishing.plot, vanishing.plot_theories):
        plot(results, tmp_path / "figure.png")
        assert (tmp_path / "figure.png").stat().st_size > 10_000
