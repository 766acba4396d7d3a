import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments import __main__ as entry
from experiments import harness, lstm_memory, perturbation, text, xray

ROOT = Path(__file__).parents[1]
SMALL = ["--hidden", "4", "--length", "12", "--cell"]


def test_small_xray_from_the_command_line(tmp_path):
    (tmp_path / "text.txt").write_text("The quick, brown fox -- jumps over the lazy dog! " * 5)
    command = [
        sys.executable,
        "-m",
        "experiments",
        *SMALL,
        "lstm",
        "--text",
        tmp_path / "text.txt",
        "--out",
        tmp_path / "o",
    ]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True, cwd=ROOT)
    assert "gradient proved: 4 routes agree to" in done.stdout
    assert "lstm: gradient by bptt" in done.stderr
    names = {path.name for path in (tmp_path / "o").iterdir()}
    assert names == {"config.json", "arrays.npz", "summary.json", "figure.png"}
    summary = json.loads((tmp_path / "o" / "summary.json").read_text())["lstm"]
    assert summary["proved"]
    assert summary["singular_values"] == 8
    with np.load(tmp_path / "o" / "arrays.npz", allow_pickle=False) as arrays:
        assert arrays["lstm.norms"].shape == (12, 12)
    assert (tmp_path / "o" / "figure.png").read_bytes().startswith(b"\x89PNG")


def fake(rate, length=40, error=1e-15):
    steps = np.arange(1, length + 1)
    values = np.outer(steps, [rate, rate - 1.0, -np.inf])
    assembled = values.copy()
    assembled[:, 1] += 0.2
    norms = np.tril(np.ones((length, length)))
    profile = norms.sum(0)[::-1] * 0 + 1.0
    errors = np.array([error, 0, 0])
    reach = np.array([1, 20, 39])
    return xray.XRay(np.array(3.3), errors, steps, values, assembled, values[-1], norms, profile, reach)


@pytest.mark.parametrize(
    ("rate", "trend", "words"),
    [
        (-0.5, "vanishing", "half-life 1.4 steps, leaves float32 at step 175 (extrapolated)"),
        (0.5, "exploding", "doubling time 1.4 steps, leaves float32 at step 177 (extrapolated)"),
        (-4.0, "vanishing", "half-life 0.2 steps, leaves float32 by step 22"),
        (0.001, "stable", "stays in float32 over these 40 steps"),
        (-np.inf, "vanishing", "half-life 0.0 steps, leaves float32 by step 1"),
        (0.0, "stable", "half-life inf steps, stays in float32 over these 40 steps"),
    ],
)
def test_the_verdict_says_what_the_numbers_say(rate, trend, words):
    summary = xray.summarise(fake(rate), 40)
    assert summary["trend"] == trend
    assert summary["rate_per_step"] == pytest.approx(rate)
    assert summary["assembled_wrong_float64"] == (1 if np.isfinite(rate) else 0)
    assert summary["assembled_wrong_float32"] == 0
    assert summary["verdict"][1].endswith(words)
    assert "90 % of the gradient reaches 20 steps back" in summary["verdict"][2]


def test_a_wrong_gradient_is_not_proved():
    summary = xray.summarise(fake(-0.1, error=1e-11), 40)
    assert not summary["proved"]
    assert "NOT proved" in summary["verdict"][0]
    assert not xray.summarise(fake(-0.1, error=np.nan), 40)["proved"]


def test_plot_takes_arrays(tmp_path):
    xray.plot({"elman": fake(-0.1), "gru": fake(0.1)}, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_text_is_letters_and_spaces(tmp_path):
    assert set(text.load_text()) <= set(text.ALPHABET)
    assert len(text.load_text()) > 300_000
    assert set(text.clean(text.FALLBACK)) == set(text.clean(text.FALLBACK)) & set(text.ALPHABET)
    assert len(text.clean(text.FALLBACK)) > 800
    np.testing.assert_array_equal(text.encode(" az"), [0, 1, 26])
    (tmp_path / "t").write_text("\ufeffOne--two\n3 four")
    assert text.load_text(str(tmp_path / "t")) == "one two four"


def test_the_built_in_text_stands_in(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    assert text.load_text() == text.clean(text.FALLBACK)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["nosuch"], "experiments: unknown experiment 'nosuch', expected one of xray, identities"),
        (["xray", "--text", "/no/such"], "text: cannot read /no/such: No such file or directory"),
        (["xray", "--text", "{empty}"], "has 0 different letters or spaces, expected at least 2"),
        (["xray", "--text", "{one}"], "has 1 different letters or spaces, expected at least 2"),
        (["xray", "--text", "{binary}"], "not UTF-8 text"),
        (["xray", "--text", "{short}"], "length: got T = 256, expected at most what is left (11 symbols in the text"),
        (["xray", "--length", "0"], "length: got 0, expected at least 1"),
        (["xray", "--hidden", "-3"], "hidden: got -3, expected at least 1"),
        (["xray", "--gain", "nan"], "gain: got nan, expected a finite number"),
        (["xray", "--offset", "-1"], "offset: got -1, expected at least 0"),
    ],
)
def test_bad_arguments_get_one_line(arguments, line, tmp_path, capsys):
    contents = {"empty": b"", "one": b"aaaa", "binary": b"\xff\xfe\x00", "short": b"hello there"}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    paths = {name: tmp_path / name for name in contents}
    code = entry.main([argument.format(**paths) for argument in arguments] + ["--out", str(tmp_path / "out")])
    assert code == 2
    error = capsys.readouterr().err
    assert line in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments", [["xray", "--cell", "rnn"], ["xray", "--depth", "3"], ["xray", "--hidden", "many"]]
)
def test_unknown_options_get_one_line(arguments, capsys):
    with pytest.raises(SystemExit, match="2"):
        entry.main(arguments)
    assert capsys.readouterr().err.count("\n") == 1


def test_perturbation_is_predicted_until_it_is_not_small(tmp_path):
    assert entry.main(["perturbation", "--hidden", "4", "--length", "5", "--out", str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "arrays.npz", "figure.png"}
    results = perturbation.run(perturbation.Config(hidden=48, length=60))
    linear, contractive, chaotic = results.values()
    np.testing.assert_allclose(linear.actual[2], linear.predicted[2], rtol=1e-6)
    np.testing.assert_allclose(linear.actual_back, linear.predicted_back, rtol=1e-2)
    assert contractive.predicted[0, -1] < 1e-2 * contractive.predicted[0, 0]
    assert chaotic.predicted[2, -1] > 10 * chaotic.actual[2, -1]
    np.testing.assert_allclose(chaotic.actual[0, :10], chaotic.predicted[0, :10], rtol=1e-3)


def test_lstm_memory_has_three_meanings(tmp_path):
    assert entry.main(["lstm_memory", "--hidden", "5", "--length", "9", "--out", str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "arrays.npz", "figure.png"}
    for memory in lstm_memory.run(lstm_memory.Config(hidden=5, length=9)).values():
        assert memory.jacobian_error < 1e-14
        first, through, full = memory.log_norms
        assert first[0] == pytest.approx(np.log(memory.gates[0, 1].max()))
        assert full[0] == pytest.approx(first[0])
        assert abs(through[-1] - first[-1]) > 1e-3
        assert abs(full[-1] - through[-1]) > 1e-3


def test_lstm_memory_longer_than_its_text(tmp_path, capsys):
    (tmp_path / "short").write_text("hello there")
    assert entry.main(["lstm_memory", "--text", str(tmp_path / "short"), "--out", str(tmp_path / "o")]) == 2
    assert "length: got T = 100, expected at most 10" in capsys.readouterr().err


def test_help_lists_the_experiments(capsys):
    assert entry.main(["--help"]) == 0
    assert "xray" in capsys.readouterr().out


def test_files_are_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "value.json"
    harness.write_json(path, {"a": [1.0, float("inf")]})
    assert json.loads(path.read_text()) == {"a": [1.0, None]}
    with pytest.raises(TypeError):
        harness.write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": [1.0, None]}
    with pytest.raises(TypeError, match="object array"):
        harness.write_arrays(tmp_path / "a.npz", {"a": np.array([object()])})
    assert [file.name for file in tmp_path.iterdir()] == ["value.json"]
