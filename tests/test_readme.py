"""The README runs as printed, and what it names exists."""

import doctest
import re
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


@pytest.mark.slow
def test_the_quick_start_runs_as_printed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = doctest.testfile(str(ROOT / "README.md"), module_relative=False)
    assert result.attempted > 10
    assert result.failed == 0


def test_the_page_on_your_own_run_runs_as_printed(tmp_path, monkeypatch):
    pytest.importorskip("flax")
    monkeypatch.chdir(tmp_path)
    with jax.numpy_dtype_promotion("standard"):  # optax counts its steps in int32
        result = doctest.testfile(str(ROOT / "experiments" / "README.md"), module_relative=False)
    assert result.attempted > 20
    assert result.failed == 0


def test_the_two_commands_are_one_line_each_and_make_what_they_need():
    lines = re.findall(r"^```sh\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    main_job, tests = lines[1:]
    assert main_job.count("\n") == tests.count("\n") == 1
    assert all("python3 -m venv .venv" in line and "pip install" in line for line in (main_job, tests))
    assert main_job.strip().endswith("-m experiments")
    assert tests.strip().endswith("-m pytest")


def test_what_the_readme_shows_exists():
    for path in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / path).exists(), path
    for path in re.findall(r"^\| `([\w/]+\.?\w*)`", README.partition("## Map")[2], re.MULTILINE):
        assert (ROOT / path).exists(), path
