"""Points shared by devices and by processes of their own: the same files as one device of one process leaves."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import __main__ as entry
from experiments.harness import QUIET, asked, hosts, points, progress, supervisor
from tests import processes

from . import spread_toy

TOY = ("-m", "tests.experiments.harness.spread_toy")
NAMES = [f"gain {gain:.3g}" for gain in spread_toy.GAINS]
README = processes.ROOT / "experiments" / "README.md"
PROGRESS = re.compile(r"\[ *[\d.]+ s\] ")


def run_toy(out, *words):
    (ended,) = processes.wait([processes.start([*TOY, "--out", str(out), *words])])
    return ended


def start_toys(out, count, *words, each=()):
    """`each`: further words of process i."""
    address = f"127.0.0.1:{processes.find_port()}"
    same = [*TOY, "--out", str(out), "--coordinator", address, "--timeout", "120"]
    which = [["--process-id", str(i), "--num-processes", str(count)] for i in range(count)]
    more = [*each, *[()] * (count - len(each))]
    return [processes.start([*same, *own, *words, *further]) for own, further in zip(which, more, strict=True)]


def read_arrays(out):
    with np.load(out / "arrays.npz") as arrays:
        return dict(arrays)


def require_same(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        if array.dtype.kind == "U":  # the alphabet
            assert (found[name] == array).all()
        else:
            np.testing.assert_allclose(found[name], array, rtol=0, atol=1e-12, err_msg=name)


def lines_of(error):
    """What is said besides the progress."""
    return [line for line in error.splitlines() if not PROGRESS.match(line)]


@pytest.fixture(scope="module")
def expected():
    """The arrays of the points, each computed by plain NumPy calls of the function."""
    todo = spread_toy.make_todo()
    for name, point in todo.items():
        result = point.arguments
        for stage in point.stages:
            result = jax.jit(stage)(result)
        todo[name] = point.finish(jax.tree.map(np.asarray, result))
    columns = [[point.path for point in todo.values()], [point.more["last"] for point in todo.values()]]
    return dict(zip(("toy.path", "toy.last"), map(np.stack, columns), strict=True))


@pytest.mark.parametrize(
    ("devices", "sizes", "said"),
    [
        (1, [1] * 14, ""),
        (2, [2, 2, 2, 2, 1, 2, 2, 1], "14 points on 2 devices: 8 rounds, 2 places idle"),
        (7, [7, 2, 5], "14 points on 7 devices: 3 rounds, 7 places idle"),
        (9, [9, 5], "14 points on 9 devices: 2 rounds, 4 places idle"),
        (100, [9, 5], "14 points on 100 devices: 2 rounds, 186 places idle"),
    ],
)
def test_rounds_are_of_one_function_and_say_what_is_idle(devices, sizes, said):
    rounds = points.make_rounds(spread_toy.make_todo(), devices)
    assert [name for names in rounds for name in names] == NAMES
    assert [len(names) for names in rounds] == sizes
    assert points.describe_idle(rounds, devices) == said
    assert points.describe_idle([("a",)], 2) == "1 point on 2 devices: 1 round, 1 place idle"


def test_every_stage_is_traced_once_and_every_point_is_kept(tmp_path, capsys, expected):
    traced = []

    def orbit(seed, gain):
        traced.append(gain)
        return spread_toy.orbit(seed, gain)

    todo = spread_toy.make_todo(stage=orbit)
    some = {name: todo[name] for name in NAMES[3:6]}
    first = progress.Progress(tmp_path).sweep_traced(some, spread_toy.LIKE)
    assert len(traced) == 1
    found = progress.Progress(tmp_path).sweep_traced(todo, spread_toy.LIKE)
    assert len(traced) == 3
    again = progress.Progress(tmp_path).sweep_traced(todo, spread_toy.LIKE)
    assert len(traced) == 3
    assert "14 of 14 points are there already" in capsys.readouterr().err
    quiet = QUIET.sweep_traced(spread_toy.make_todo(), spread_toy.LIKE)
    for every in (found, again, quiet):
        assert list(every) == NAMES
        require_same({"path": np.stack([point.path for point in every.values()])}, {"path": expected["toy.path"]})
        assert all(isinstance(point, spread_toy.Point) for point in every.values())
    assert list(first) == NAMES[3:6]


COLLECTIVES = """
import re
import jax, numpy as np
jax.config.update("jax_enable_x64", True)
from experiments.harness import hosts, points
from tests.experiments.harness import spread_toy
hosts.make_cpu_devices(8, "")
assert not hosts.lacks_devices(8)
hosts.make_cpu_devices(9, "")  # too late, and no error
rounds = points.Rounds(hosts.Group(devices=8))
todo = list(spread_toy.make_todo().values())[-5:]
print(len(rounds.compute(todo)), len(jax.devices()))
kinds = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter|collective-broadcast"
given = jax.tree.map(rounds._place, np.arange(8.0))
for stage in todo[0].stages:
    compiled = points.spread(stage, rounds._mesh).lower(given).compile()
    given = compiled(given)
    print(re.findall(kinds, compiled.as_text()), {leaf.addressable_shards[0].data.shape[0] for leaf in given.values()})
"""


def test_the_compiled_points_have_no_collective_and_each_device_holds_one_of_eight():
    (ended,) = processes.wait([processes.start(["-c", COLLECTIVES], JAX_PLATFORMS="cpu")])
    assert (ended.code, ended.out.splitlines()) == (0, ["5 8", "[] {1}", "[] {1}"]), ended.error


def test_eight_devices_leave_what_one_leaves(tmp_path, expected):
    ended = run_toy(tmp_path / "toy", "--devices", "8")
    assert (ended.code, ended.out) == (0, "value 1\n"), ended.error
    assert "14 points on 8 devices: 3 rounds, 10 places idle\n" in ended.error
    require_same(read_arrays(tmp_path / "toy"), expected)
    record = json.loads((tmp_path / "toy" / "run.json").read_text())
    assert (record["devices"], record["processes"], record["device"]["count"]) == (8, 1, 8)
    again = run_toy(tmp_path / "toy", "--resume")  # the same run, on another number of devices
    assert (again.code, again.error.count("holds the finished run")) == (0, 1)


@pytest.mark.sweep
@pytest.mark.parametrize(("count", "words"), [(2, ("--devices", "2")), (4, ())])
def test_processes_leave_what_one_leaves(count, words, tmp_path, expected):
    first, *others = processes.wait(start_toys(tmp_path / "toy", count, *words))
    assert (first.code, first.out, lines_of(first.error)) == (0, "value 1\n", [])
    for i, ended in enumerate(others, 1):
        assert (ended.code, ended.out) == (0, "")
        said = [line[line.index("]") + 2 :] for line in ended.error.splitlines()]
        assert said == [
            f"process {i} of {count} computes its share; process 0 keeps the results",
            f"process {i} of {count} has done its share",
        ]
    require_same(read_arrays(tmp_path / "toy"), expected)
    assert os.listdir(tmp_path) == ["toy"]
    record = json.loads((tmp_path / "toy" / "run.json").read_text())
    assert (record["devices"], record["processes"]) == (4, count)


@pytest.mark.sweep
@pytest.mark.skipif(not hasattr(signal, "sigwait"), reason="no POSIX signals")
@pytest.mark.parametrize(
    ("which", "number", "count"), [(1, signal.SIGKILL, 3), (0, signal.SIGKILL, 3), (1, signal.SIGINT, 2)]
)
def test_one_that_ends_ends_all_in_one_line_and_the_rest_is_computed_later(which, number, count, tmp_path, expected):
    out = tmp_path / "toy"
    run = start_toys(out, count, "--pause", "0.5")
    said = ""
    while "(0 of 14" not in said or f"({count} of 14" not in said:
        line = run[0].stderr.readline()
        assert line, said
        said += line
    run[which].send_signal(number)
    ended = processes.wait(run)
    assert ended[which].code == (130 if number == signal.SIGINT else -number)
    assert max(each.seconds for each in ended) < 60
    kept = len(list(out.with_name("toy.partial").glob("points/*.npz")))
    assert kept >= count
    words = f"; {kept} points are kept in {out}.partial (--resume continues)"
    for i, each in enumerate(ended):
        lines = lines_of(each.error)
        if i != which:
            assert each.code == supervisor.GONE
            assert len(lines) == 1, lines
            assert re.match(r"experiments toy: (a|the) process of the run is gone|experiments toy: process", lines[0])
            assert lines[0].endswith(words) == (i == 0)
        else:
            assert lines == (["experiments: interrupted"] if number == signal.SIGINT else [])
    if which:
        again = processes.wait(start_toys(out, 2, "--pause", "0.5", "--devices", "2", "--resume"))[0]
        assert again.code == 0, again.error
    else:
        again = run_toy(out, "--pause", "0.5", "--devices", "3", "--resume")
    assert f"{kept} of 14 points are there already" in again.error
    require_same(read_arrays(out), expected)
    assert os.listdir(tmp_path) == ["toy"]


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("count", "words", "each", "ends"),
    [
        (2, (), [(), ("--value", "7")], [(2, "process 1 has another run than process 0 (value 7, not 1)")] * 2),
        (2, (), [(), ("--devices", "2")], [(2, "process 1 has another run than process 0 (devices 2, not 1)")] * 2),
        (
            2,
            (),
            [(), ("--num-processes", "3")],
            [(2, "process 1 has another run than process 0 (num_processes 3,")] * 2,
        ),
        (
            2,
            ("--timeout", "5"),
            [(), ("--process-id", "5")],
            [(3, "not all of 2 processes came to 127.0.0.1:"), (2, "process_id: got 5, expected 0 … 1")],
        ),
        (
            3,
            ("--timeout", "8"),
            [(), (), ("--process-id", "1")],
            [(3, "not all of 3 processes came to 127.0.0.1:"), (None, "process_id: got 1, which two processes have")],
        ),
        (2, ("--out", "/proc"), (), [(2, "out: got /proc, a mount point"), (2, "process 0 ends: out: got /proc")]),
    ],
    ids=["another config", "other devices", "another count", "one never comes", "the same id", "no folder"],
)
def test_processes_that_do_not_fit_together_get_one_line_each(count, words, each, ends, tmp_path):
    ended = processes.wait(start_toys(tmp_path / "toy", count, *words, each=each))
    for i, one in enumerate(ended):
        lines = one.error.splitlines()
        assert len(lines) == 1, one.error
        assert lines[0].startswith("experiments toy: ")
        assert one.out == ""
        if i < len(ends) and ends[i][0] is not None:
            assert one.code == ends[i][0]
            assert ends[i][1] in lines[0]
    if ends[1][0] is None:  # either of the two may come first
        later = sorted((one.code, ends[1][1] in one.error) for one in ended[1:])
        assert later == [(2, True), (supervisor.GONE, False)]
    assert not (tmp_path / "toy").exists()


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        ("--coordinator 127.0.0.1:{port} --process-id 1 --num-processes 2 --timeout 2", 3, "process 0 does not listen"),
        ("--coordinator nosuch.invalid:80 --process-id 1 --num-processes 2", 2, "whose name does not resolve"),
        ("--coordinator 127.0.0.1:{busy} --process-id 0 --num-processes 2", 2, "process 0 cannot listen there"),
        ("--devices 3", 2, "devices: got 3, expected at most 2 (cpu devices that JAX finds here)"),
    ],
)
def test_a_wrong_coordinator_and_too_many_devices_get_one_line(words, code, line, tmp_path):
    with processes.socket.create_server(("", 0)) as busy:
        given = words.format(port=processes.find_port(), busy=busy.getsockname()[1]).split()
        flags = {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"}
        run = processes.start([*TOY, "--out", str(tmp_path / "toy"), *given], JAX_PLATFORMS="cpu", **flags)
        (ended,) = processes.wait([run])
    assert (ended.code, ended.error.count("\n")) == (code, 1), ended.error
    assert line in ended.error
    assert os.listdir(tmp_path) == []


WITH = "--coordinator localhost:80"


@pytest.mark.parametrize(
    ("name", "words", "line"),
    [
        ("chaos", "--devices 0", "devices: got 0, expected at least 1"),
        ("chaos", "--devices 65537", "devices: got 65537, expected at most 65536"),
        ("chaos", "--devices two", "devices: got 'two', expected an integer"),
        ("chaos", "--timeout 0", "timeout: got 0, expected at least 1"),
        ("chaos", "--num-processes 0", "num_processes: got 0, expected at least 1"),
        ("chaos", "--process-id -1", "process_id: got -1, expected at least 0"),
        ("chaos", "--process-id 1", "coordinator: got none, expected host:port, as process_id is 1"),
        ("chaos", "--num-processes 2", "coordinator: got none, expected host:port, as num_processes is 2"),
        ("chaos", WITH, "process_id: got none, expected an integer, as coordinator is localhost:80"),
        ("chaos", f"{WITH} --process-id 0", "num_processes: got none, expected an integer, as coordinator is"),
        ("chaos", f"{WITH} --process-id 2 --num-processes 2", "process_id: got 2, expected 0 … 1"),
        *[
            (
                "vanishing",
                f"--coordinator {address} --process-id 0 --num-processes 2",
                f"coordinator: got '{address}'",
            )
            for address in ("localhost", "localhost:", ":80", "localhost:0", "localhost:65536", "localhost:x")
        ],
        ("chaos", f"{WITH} --process-id 0 --num-processes 1", "in a function call, expected it on a command line"),
        ("gates", "--devices 2", "devices: gates runs on one device of one process; vanishing and chaos can be spread"),
        ("xray", f"{WITH}", "coordinator: xray runs on one device of one process; vanishing and chaos can be spread"),
    ],
)
def test_what_cannot_be_asked_gets_one_line(name, words, line, capsys, tmp_path):
    assert entry.main([name, "--out", str(tmp_path / "out"), *words.split()]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"experiments {name}: ")
    assert line in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_those_that_can_be_spread_say_so():
    able = [name for name in entry.NAMES if entry.find_experiment(name).spread]
    assert " and ".join(able) == "vanishing and chaos"
    with pytest.raises(ValueError, match=r"^timeout: gates runs"):
        asked.refuse_spread("gates", ["--timeout=3"], "others")
    assert hosts.split_address("[::1]:80") == ("::1", 80)


LOOPBACK = """
scontrol() { echo 127.0.0.1; echo other; }
srun() { for i in $(seq 0 $((SLURM_NTASKS - 1))); do SLURM_PROCID=$i "$@" & done; wait; }
python() { "$PYTHON" "$@"; }
export -f python
"""


@pytest.mark.skipif(sys.platform == "win32", reason="bash")
def test_the_script_of_the_readme_runs_on_the_loopback_address(tmp_path, expected):
    script = re.search(r"```sh\n(#!/bin/bash\n.*?)```", README.read_text(), re.DOTALL)[1]
    changes = {
        "experiments chaos --size 4096": TOY[1],
        "results/chaos": str(tmp_path / "toy"),
        ":9876": f":{processes.find_port()}",
    }
    for there, here in changes.items():
        assert there in script
        script = script.replace(there, here)
    environment = {**os.environ, "PYTHON": sys.executable, "SLURM_NTASKS": "2", "SLURM_JOB_NODELIST": "host[0-1]"}
    run = subprocess.run(["bash", "-c", LOOPBACK + script], cwd=processes.ROOT, env=environment, capture_output=True)
    assert run.stdout == b"value 1\n", run.stderr.decode()
    require_same(read_arrays(tmp_path / "toy"), expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "words"),
    [("chaos", "--size 8 --nets 2 --length 20 --transient 5"), ("vanishing", "--size 8 --length 24")],
)
def test_the_experiments_themselves_find_the_same_on_devices_and_processes(name, words, tmp_path: Path):
    same = ["-m", "experiments", name, *words.split()]
    runs = [processes.start([*same, "--out", str(tmp_path / "one")])]
    runs += [processes.start([*same, "--devices", "4", "--out", str(tmp_path / "four")])]
    together = lambda i, n, address: [
        *same,
        *("--out", str(tmp_path / "two"), "--coordinator", address, "--process-id", str(i), "--num-processes", str(n)),
    ]
    assert [each.code for each in processes.wait(runs, 600) + processes.run(together, 2, 600)] == [0] * 4
    for other in ("four", "two"):
        require_same(read_arrays(tmp_path / other), read_arrays(tmp_path / "one"))
