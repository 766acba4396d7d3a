import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import benchmark
from experiments.benchmark import (
    cases,
    exponents,
    figure,
    floors,
    frameworks,
    machine,
    modern,
    packages,
    peers,
    report,
    suites,
    timing,
)
from experiments.benchmark.timing import Contestant, Unavailable

from .runs import run_tiny

PACKAGES = (
    *("flax", "equinox", "haiku", "torch", "clvlib", "lyapax", "chaotax", "braintrace", "brainstate"),
    *("recurrentgemma", "mlstm_kernels", "xlstm", "fla", "mambapy", "accelerated_scan", "LRU_pytorch"),
)
TINY = {"cells": ("tanh",), "lengths": (8,), "sizes": (4,), "batches": (1,), "seconds": 0.0}


@pytest.fixture
def alone(monkeypatch):
    """No peer can be imported, and nothing large is measured."""
    for name in PACKAGES:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(machine.ROOFLINE_SIZES, "cpu", (8, 16))
    monkeypatch.setitem(machine.ROOFLINE_RACE, "seconds", 0.0)
    monkeypatch.setattr(suites, "SCALING", {"T": (4, 8)})
    monkeypatch.setattr(suites, "WIDE", ((4, 4, 2), (2, 8, 32)))
    monkeypatch.setattr(suites, "WIDE_UNITS", 8)
    monkeypatch.setattr(modern, "KINDS", {name: modern.KINDS[name] for name in ("min_gru", "mlstm")})
    monkeypatch.setattr(frameworks, "KINDS", {name: frameworks.KINDS[name] for name in ("linen GRUCell", "haiku LSTM")})
    monkeypatch.setattr(suites, "SCALING_AT", {"T": 4, "N": 4, "B": 1})


@pytest.mark.slow
def test_a_tiny_run_without_peers_is_whole(alone, tmp_path):
    run = run_tiny("benchmark", "--cells tanh --lengths 8 --sizes 4 --batches 1,2 --seconds 0", tmp_path)
    assert run.code == 0
    assert run.files == {"benchmark.json", "figure.png", "run.json"}
    assert f"wrote benchmark.json, figure.png and run.json to {tmp_path}" in run.progress
    results = run.summary
    environment = results["environment"]
    assert environment["roofline"]["float32"] > 0
    assert {"date", "cpu", "cores", "load", "flags", "versions", "default_matmul_precision"} <= set(environment)
    for name, fastest in environment["roofline"].items():
        assert fastest == max(run[name] for run in environment["roofline_runs"])
    assert environment["versions"]["jax"] == jax.__version__
    rows = results["rows"]
    assert {row["suite"] for row in rows} == {
        *("gradients", "adapters", "wide", "modern", "jacobians", "terms"),
        *("exponents", "intervals", "singular values", "online", "scaling"),
    }
    gradients = {(row["contestant"], row["B"]): row for row in rows if row["suite"] == "gradients"}
    assert {row["dtype"] for row in gradients.values()} == {"float32"}
    assert {row["dtype"] for row in rows if row["suite"] == "exponents"} == {"float64"}
    for batch in (1, 2):
        assert {name for name, b in gradients if b == batch} == {"jaxbptt", "jaxbptt, step only", *peers.PEERS}
        assert gradients["autodiff", batch]["status"] == "ok"
        assert gradients["autodiff", batch]["difference"] < 1e-5
        assert gradients["autodiff", batch]["rounds"] == timing.LEAST_ROUNDS
        assert gradients["jaxbptt", batch]["gflops"] > 0
        assert gradients["jaxbptt", batch]["temp_bytes"] > 0
        for name in ("flax", "equinox", "torch"):
            assert gradients[name, batch]["status"] == "missing"
        assert gradients["cudnn", batch]["status"] == "skipped"
    wide = {(row["contestant"], row["N"]): row for row in rows if row["suite"] == "wide"}
    assert (suites.PRODUCT, 4) not in wide
    assert wide[suites.PRODUCT, 8]["flops"] == 2 * 8**3
    assert wide["jaxbptt", 8]["product_share"] == pytest.approx(
        wide["jaxbptt", 8]["gflops"] / wide[suites.PRODUCT, 8]["gflops"], rel=0.9
    )
    assert wide["jaxbptt", 4]["memory_ratio"] == wide["jaxbptt", 4]["temp_bytes"] / wide["autodiff", 4]["temp_bytes"]
    plain = {(row["cell"], row["contestant"]): row for row in rows if row["suite"] == "modern" and row["B"] == 2}
    assert plain["min_gru", "associative scan"]["status"] == plain["mlstm", "autodiff"]["status"] == "ok"
    assert plain["min_gru", "accelerated-scan"]["status"] == plain["mlstm", "mlstm-kernels"]["status"] == "missing"
    others = {(row["cell"], row["contestant"]): row["status"] for row in rows if row["suite"] == "adapters"}
    assert others == {("linen GRUCell", "own loop"): "missing", ("haiku LSTM", "own loop"): "missing"}
    assert "modern: plain scan" in run.said
    assert "flax missing (import of flax halted" in run.said
    assert "No peer takes part: what follows is jaxbptt beside JAX's own ways." in run.said
    assert "gradients: tanh, T 8, N 4, B 2, float32" in run.progress
    assert max(map(len, run.said.splitlines())) <= 120


@pytest.mark.sweep
@pytest.mark.parametrize("cell", ["tanh", "lstm", "gru"])
@pytest.mark.parametrize("batch", [1, 3])
def test_the_plain_scan_of_every_cell_gives_our_gradient(cell, batch):
    case = cases.make_case(cell, 6, 3, batch, dtype=jnp.float64)
    ours, plain = peers.ours(case), peers.autodiff(case)
    expected, actual = (jax.jit(made.function)(*made.arguments) for made in (ours, plain))
    assert timing.relative_difference(jax.tree.leaves(expected), jax.tree.leaves(actual)) < 1e-12
    assert all(np.any(np.asarray(leaf)) for leaf in jax.tree.leaves(expected))


SEVERAL_DTYPES = {
    "gradients": suites.gradient_rows,
    "wide": suites.wide_rows,
    "modern": modern.modern_rows,
}


@pytest.mark.sweep
@pytest.mark.parametrize("suite", SEVERAL_DTYPES)
def test_the_dtypes_of_a_run_are_those_of_its_rows(alone, suite):
    config = benchmark.Config(**TINY, dtypes=("float64", "float32"))
    rows = list(SEVERAL_DTYPES[suite](config, lambda message: None))
    assert list(dict.fromkeys(row["dtype"] for row in rows)) == ["float64", "float32"]
    compared = [row for row in rows if row["contestant"] == "autodiff"]
    assert {row["status"] for row in compared} == {"ok"}
    assert all(row["difference"] < {"float64": 1e-13, "float32": 1e-5}[row["dtype"]] for row in compared)


@pytest.mark.sweep
@pytest.mark.parametrize("name", modern.KINDS)
@pytest.mark.parametrize("batch", [1, 3])
def test_a_modern_cell_written_by_anybody_gives_our_gradient(name, batch):
    kind = modern.KINDS[name]
    case = cases.draw_case(name, kind.make(4), 6, 4, batch, dtype=jnp.float64)
    made = [peers.ours(case), modern.plain(case, kind)]
    made += [] if kind.terms is None else [modern.associative(case, kind)]
    with jax.numpy_dtype_promotion("standard"):  # anybody multiplies real by complex numbers
        expected, *others = [jax.tree.leaves(jax.jit(each.function)(*each.arguments)) for each in made]
    assert all(timing.relative_difference(expected, actual) < 1e-12 for actual in others)
    states = jax.tree.leaves(jax.eval_shape(kind.start, case.params.cell))
    sizes = [(2 if jnp.issubdtype(state.dtype, jnp.complexfloating) else 1) * state.size for state in states]
    assert kind.entries(4) <= sum(sizes) <= kind.entries(4) + 5  # mLSTM: a normaliser and a stabiliser beside C


@pytest.mark.sweep
@pytest.mark.parametrize("name", frameworks.KINDS)
@pytest.mark.parametrize("batch", [1, 2])
def test_an_adapted_model_gives_the_gradient_of_its_own_loop(name, batch):
    pytest.importorskip({"linen": "flax", "nnx": "flax"}.get(name.split()[0], name.split()[0]))
    kind = frameworks.KINDS[name]
    made = kind.make(frameworks.Sizes(5, 4, batch, jnp.dtype("float64")))
    results = [jax.jit(each.function)(*each.arguments) for each in made]
    expected, actual = map(jax.tree.leaves, results)
    assert jax.tree.structure(results[0]) == jax.tree.structure(results[1])
    assert timing.relative_difference(expected, actual) < 1e-12
    assert made[0].arguments[1].shape == ((5, 4) if batch == 1 else (5, 2, 4))


@pytest.mark.parametrize(
    ("name", "package"),
    [(name, package) for name, makers in packages.PACKAGES.items() for package in makers],
)
@pytest.mark.filterwarnings("ignore")
def test_a_package_gives_our_gradient(name, package):
    kind = modern.KINDS[name]
    case = cases.draw_case(name, kind.make(4), packages.CHUNK, 4, dtype=jnp.float32)
    try:
        theirs = packages.PACKAGES[name][package](case)
    except ImportError as error:
        pytest.skip(str(error))
    expected = peers.ours(case)
    ours, *actual = jax.jit(expected.function)(*expected.arguments), theirs.function(*theirs.arguments)
    assert timing.relative_difference(jax.tree.leaves(ours), jax.tree.leaves(theirs.convert(actual[0]))) < 1e-4


def test_a_framework_that_fails_is_a_row(monkeypatch):
    def fails(sizes):
        raise RuntimeError("no such cell")

    monkeypatch.setattr(frameworks, "KINDS", {"a cell": frameworks.Kind(fails, gates=1)})
    (row,) = frameworks.adapter_rows(benchmark.Config(**TINY), lambda message: None)
    assert (row["cell"], row["status"], row["note"]) == ("a cell", "failed", "no such cell")


def make(function, **options):
    return lambda: Contestant(function, (jnp.arange(1.0, 4.0),), **options)


def test_a_result_that_differs_is_not_timed():
    makers = [("ours", make(jnp.sin)), ("wrong", make(lambda x: jnp.sin(x) * 1.01)), ("right", make(jnp.sin))]
    ours, wrong, right = timing.race(makers, seconds=0.0, tolerance=1e-3)
    assert wrong["status"] == "differs"
    assert wrong["difference"] == pytest.approx(0.01, rel=1e-6)
    assert "seconds" not in wrong
    assert (ours["ratio"], right["status"]) == (1, "ok")
    assert right["seconds"] > 0
    nan = timing.race([("ours", make(jnp.sin)), ("nan", make(lambda x: x * jnp.nan))], seconds=0.0, tolerance=1e-3)
    assert nan[1]["status"] == "differs"


def test_a_peer_that_fails_is_a_row_and_ours_an_error():
    def fails():
        raise RuntimeError("no such\n  thing")

    def stays_out():
        raise Unavailable("elsewhere")

    rows = timing.race([("ours", make(jnp.sin)), ("a", fails), ("b", stays_out)], seconds=0.0, tolerance=0.0)
    assert [(row["status"], row["note"]) for row in rows[1:]] == [("failed", "no such thing"), ("skipped", "elsewhere")]
    with pytest.raises(RuntimeError, match="no such"):
        timing.race([("ours", fails)], seconds=0.0, tolerance=0.0)


def test_what_is_no_peer_is_timed_and_not_compared():
    rows = timing.race([("ours", make(jnp.sin)), ("bound", make(jnp.cos, convert=None))], seconds=0.0, tolerance=0.0)
    assert rows[1]["status"] == "ok"
    assert "difference" not in rows[1]


def test_turns_rotate_and_ratios_are_of_pairs(monkeypatch):
    monkeypatch.setattr(timing, "SHORT", 0.0)
    clock, order = [0.0], []
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])

    def call(name, seconds):
        order.append(name)
        clock[0] += seconds

    taken = timing.take_turns([partial(call, "a", 1.0), partial(call, "b", 3.0)], 30.0)
    np.testing.assert_allclose(taken, [[1.0] * 8, [3.0] * 8])
    assert order[:4] == ["a", "b", "b", "a"]
    assert timing.take_turns([partial(call, "a", 1.0)], 0.0).shape == (1, timing.LEAST_ROUNDS)


def test_a_ratio_above_one_means_ours_is_faster(monkeypatch):
    taken = np.array([[1.0, 2.0, 4.0, 1.0, 1.0], [3.0, 6.0, 4.0, 2.0, 5.0]])
    monkeypatch.setattr(timing, "take_turns", lambda calls, seconds, rounds: taken)
    makers = [("ours", make(jnp.sin)), ("theirs", make(jnp.sin))]
    _, theirs = timing.race(makers, seconds=0.0, tolerance=0.0, flops=8e9)
    assert theirs["ratio"] == 3.0  # of the pairs 3, 3, 1, 2, 5; the ratio of the medians is 4
    assert theirs["ratio_quartiles"] == [2.0, 3.0]
    assert (theirs["seconds"], theirs["gflops"]) == (4.0, 2.0)
    assert theirs["ratio_of_medians"] == 4.0


def test_fitted_exponent_of_a_power_law():
    sizes = np.array([32, 64, 128, 256])
    assert timing.fit_exponent(sizes, 3e-5 * sizes**1.7) == pytest.approx(1.7, abs=1e-12)


@pytest.mark.parametrize("worst", [[np.zeros(2)], [np.zeros(3), np.ones(3)], [np.full(3, np.nan)]])
def test_another_shape_or_count_never_agrees(worst):
    assert timing.relative_difference([np.ones(3)], worst) >= 1 - 1e-15


def test_flops_are_the_products_that_are_executed():
    case = cases.make_case("lstm", 5, 3, 2)
    recurrent, inputs, readout = 4 * 3 * 3, 4 * 3 * 3, cases.OUTPUTS * 3
    assert case.flops() == 2 * (3 * recurrent + 2 * inputs + 3 * readout) * 5 * 2


def test_the_roofline_is_the_fastest_of_all_sizes(monkeypatch):
    monkeypatch.setitem(machine.ROOFLINE_SIZES, "cpu", (8, 16, 32))
    taken = {8: 1e-6, 16: 2e-6, 32: 1e-3}
    monkeypatch.setattr(machine, "race", lambda makers, **_: [{"fastest": taken[len(makers[0][1]().arguments[0])]}])
    fastest = 2 * 16**3 / 2e-6
    assert machine.measure_rooflines() == {"float32": fastest, "float64": fastest}


def test_the_grid_leaves_out_its_largest_corner():
    kept = list(cases.grid(("gru",), (1024, 8192), (128, 256), (1, 32)))
    assert len(kept) == 7
    assert ("gru", 8192, 256, 32) not in kept


def test_exponents_that_are_off_differ(monkeypatch, alone):
    def make_shifted(w_hh, start, steps, *, by):
        return Contestant(jnp.diag, (w_hh,), convert=lambda found: found - by / steps)

    by_what = {"jaxbptt": 0.0, "too far": exponents.FRAMES + 1, "near": exponents.FRAMES - 1}
    monkeypatch.setattr(exponents, "EXPONENTS", {name: partial(make_shifted, by=by) for name, by in by_what.items()})
    monkeypatch.setattr(exponents, "SINGULAR_VALUES", {"bare QR scan": lambda chain: make(jnp.sin)()})
    rows = list(exponents.spectrum_rows(benchmark.Config(**TINY), lambda message: None))
    assert [row["status"] for row in rows if row["suite"] == "exponents"] == ["ok", "differs", "ok"]


def fake(suite, contestant, **values):
    row = {"suite": suite, "cell": "tanh", "T": 128, "N": 32, "B": 1, "dtype": "float32", "contestant": contestant}
    row |= {"status": "ok", "note": "", "seconds": 1e-3, "ratio": 1.4, "ratio_quartiles": [1.3, 1.5], "rounds": 5}
    row |= {"quartiles": [0.9e-3, 1.1e-3], "ratio_of_medians": 1.45}
    return row | {"compile_seconds": 0.5, "temp_bytes": 2**20, "gflops": 9.0} | values


def fake_results():
    rows = [
        fake("gradients", name, cell=cell, N=size, B=batch)
        for name in ("jaxbptt", "autodiff", "torch")
        for cell in ("tanh", "lstm")
        for size in (32, 64)
        for batch in (1, 32)
    ]
    rows += [
        fake("scaling", name, axis=axis, exponent=1.25, fitted=[128, 512], **{axis: value})
        for name in ("jaxbptt", "autodiff")
        for axis in "TNB"
        for value in (128, 512)
    ]
    rows.append(fake("gradients", "flax", status="differs", difference=0.2))
    del rows[-1]["seconds"]
    return {"environment": fake_environment(), "config": {}, "rows": rows}


def fake_environment(**values):
    roofline = {"float32": 1e11, "float64": 5e10}
    quiet = {"load": 0.1, "cores": 2, "flags": {}, "roofline": roofline, "roofline_runs": [roofline, roofline]}
    return machine.describe() | quiet | values


def render(*rows, **environment):
    """(The table's rows, what is said below it, all of it)."""
    said = report.render({"environment": fake_environment(**environment), "config": {}, "rows": list(rows)})
    assert max(map(len, said.splitlines())) <= 120
    _, table, *legend = (part for part in said.split("\n\n") if not part.startswith("floors"))
    return table.splitlines()[2:], " ".join(" ".join(legend).split()), said


MARKED = {  # what of a row is marked, the mark, where it is seen
    "a rate above the roofline": ({"gflops": 100.5}, "^", "100.5^"),
    "a rate above that of its dtype": ({"gflops": 50.5, "dtype": "float64"}, "^", "50.5^"),
    "terms faster than their flops": ({"suite": "terms", "times_roofline": 0.98}, "^", "0.98^"),
    "rounds that spread": ({"quartiles": [1e-3, 1.26e-3]}, "~", "1 ms~"),
    "pairs that spread": ({"ratio_quartiles": [1.2, 1.51]}, "~", "(1.20 1.51)~"),
    "medians on the other side": ({"ratio_of_medians": 0.95}, "!", "1.40!"),
    "medians beyond the quartiles": ({"ratio_of_medians": 1.51}, "!", "1.40!"),
    "quartiles around 1": ({"ratio_quartiles": [0.98, 1.2], "ratio_of_medians": 1.1}, "cannot tell", "cannot tell"),
    "quartiles around 1, medians below": (
        {"ratio_quartiles": [0.9, 1.01], "ratio_of_medians": 0.97},
        "cannot tell",
        "cannot tell",
    ),
}


@pytest.mark.parametrize("what", MARKED)
def test_what_cannot_be_believed_is_marked_and_explained(what):
    values, mark, seen = MARKED[what]
    (row,), legend, _ = render(fake("gradients", "torch") | values)
    assert seen in row
    assert f"{mark} {' '.join(report.MEANINGS[mark].split())}" in legend
    for other in set(report.MEANINGS) - {mark}:
        assert other not in row
        assert report.MEANINGS[other] not in legend


def test_what_can_be_believed_has_no_mark():
    at_the_bounds = {"gflops": 100.0, "quartiles": [1e-3, 1.25e-3], "ratio_quartiles": [1.0, 1.25], "ratio": 1.1}
    rows, legend, said = render(
        fake("gradients", "jaxbptt", ratio=1.0, ratio_quartiles=[1.0, 1.0], ratio_of_medians=1.0),
        fake("gradients", "torch", **at_the_bounds, ratio_of_medians=1.0),
        fake("terms", "gradient_terms", times_roofline=1.0),
    )
    assert len(rows) == 2
    assert not set("".join(rows)) & set("^~!")
    assert not any(meaning in legend for meaning in report.MEANINGS.values())
    assert not any(word in said for word in ("other work", "differ by a factor", "No peer"))


def test_a_product_in_the_race_is_a_bound_and_no_rival():
    rows, legend, _ = render(
        fake("wide", "jaxbptt", ratio=1.0, memory_ratio=0.25, product_share=0.625),
        fake("wide", suites.PRODUCT, ratio_quartiles=[0.5, 1.6]),
    )
    assert rows[0].endswith("mem 0.25, 62%")
    assert "1.40" not in rows[1]
    assert legend == ""


FLOOR_ROWS = {  # rows beside one that is at the bound, (worst, beyond, held)
    "held": ([], 0.95, 0, "yes"),
    "fell short": ([{"ratio": 0.9, "ratio_quartiles": [0.88, 0.94]}], 0.9, 1, "NO"),
    "cannot tell": ([{"ratio": 0.9, "ratio_quartiles": [0.88, 0.97]}], 0.9, 1, "cannot tell"),
    "one of two cannot be told": (
        [{"ratio": 0.9, "ratio_quartiles": [0.8, 0.97]}, {"ratio": 0.8, "ratio_quartiles": [0.7, 0.9]}],
        *(0.8, 2, "NO"),
    ),
}


@pytest.mark.parametrize("what", FLOOR_ROWS)
def test_a_floor_says_its_worst_case_and_whether_it_held(what):
    others, worst, beyond, held = FLOOR_ROWS[what]
    rows = [fake("gradients", "jaxbptt", ratio=1.0), fake("gradients", "flax", ratio=0.95)]
    rows += [fake("gradients", "equinox", **values) for values in others]
    (found,) = floors.find_floors(rows)
    assert (found.worst, found.below, found.held) == (worst, beyond, held)
    assert found.cases == len(rows) - 1
    line = next(line for line in render(*rows)[2].splitlines() if found.floor.what in line)
    assert f"{beyond} of {found.cases}" in line
    assert line.endswith(f"{held}  tanh 128 32 1")


def test_floors_of_memory_are_bounds_from_above_and_dtypes_are_apart():
    rows = [fake("wide", "jaxbptt", memory_ratio=value, B=batch) for value, batch in ((0.2, 32), (0.4, 64), (2.0, 1))]
    rows += [row | {"dtype": "float64", "memory_ratio": 0.3} for row in rows]
    single, double = floors.find_floors(rows)
    assert (single.cases, single.worst, single.below, single.held) == (2, 0.4, 1, "NO")
    assert (double.worst, double.below, double.held) == (0.3, 0, "yes")
    assert floors.find_floors([]) == []


def test_the_machine_says_how_it_was():
    runs = [{"float32": 2e10, "float64": 5e10}, {"float32": 1e11, "float64": 4.9e10}]
    flags = {"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false"}
    _, _, said = render(fake("gradients", "flax"), load=1.5, roofline_runs=runs, flags=flags)
    assert "other work: a load of 1.5 on 2 cores in the minute before the run; times are noisy" in said
    assert "the roofline of float32 before the run and after it differ by a factor 5.0" in said
    assert "float64 before" not in said
    assert "XLA_FLAGS=--xla_cpu_multi_thread_eigen=false" in said


@pytest.mark.parametrize(
    ("contestant", "status", "code"),
    [
        ("jaxbptt, QR every step", "differs", 1),
        ("jaxbptt, step only", "failed", 1),
        ("torch", "differs", 0),
        ("flax", "failed", 0),
        ("flax", "missing", 0),
    ],
)
def test_only_our_own_disagreement_is_an_exit_code(contestant, status, code):
    row = fake("gradients", contestant, status=status, difference=0.2, note="why")
    del row["seconds"]
    results = fake_results()
    results["rows"].append(row)
    assert benchmark.summarise(results, benchmark.Config()).exit_code == code


def test_plot_takes_rows_alone(tmp_path):
    figure.plot(fake_results(), tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 30_000


def test_the_table_ranks_nothing_that_differs():
    lines = report.render(fake_results()).splitlines()
    (differing,) = (line for line in lines if "flax  " in line and "tanh" in line)
    assert "differs" in differing
    assert "not ranked" in differing
    assert "1.50" not in differing
    assert any("T^1.25" in line for line in lines)
