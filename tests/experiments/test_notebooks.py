"""The notebooks run as printed: what each cell shows now is what is kept in it, and the files are small and clean."""

import base64
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.experiments import notebooks

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "experiments").glob("*.ipynb"))
LARGEST = 400_000  # bytes
ROUNDING = re.compile(r"\b\d(\.\d+)?e-(1[1-9]|[2-9]\d)\b|\b0\.0e\+00\b")  # its digits differ between machines


def kept(cell):
    """(text, number of pictures) of the outputs kept in a cell."""
    text, pictures = "", 0
    for output in cell["outputs"]:
        if output["output_type"] == "stream":
            text += "".join(output["text"])
        elif "image/png" in output["data"]:
            pictures += 1
        else:
            text += "".join(output["data"]["text/plain"])
    return text, pictures


def lines(text):
    """Of a text, without blanks at their ends and with one word for numbers of the size of rounding."""
    return [ROUNDING.sub("rounding", line).rstrip() for line in text.rstrip().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_what_the_code_gives(path):
    if "equinox" in path.read_text():
        pytest.importorskip("equinox")
    command = [sys.executable, "-W", "error", "-m", "tests.experiments.notebooks", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    for cell, (text, pictures) in zip(notebooks.read_cells(path), json.loads(done.stdout), strict=True):
        before, pictures_before = kept(cell)
        assert lines(text) == lines(before), cell["id"]
        assert pictures == pictures_before, cell["id"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_files_are_small_and_clean(path):
    text = path.read_text()
    assert path.stat().st_size < LARGEST
    notebook = json.loads(text)
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    identities = [cell["id"] for cell in notebook["cells"]]
    assert len(set(identities)) == len(identities)
    assert not any(cell["metadata"] for cell in notebook["cells"])  # no times, no state of an editor
    cells = notebooks.read_cells(path)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} <= {"stream", "display_data", "execute_result"}  # no error
    assert all(output.get("name", "stdout") == "stdout" for output in outputs)  # no warning
    assert not re.search(r"""(^|[\s"'(=])(/(home|tmp|root|usr|work|Users|opt|var)/|[A-Z]:\\\\)""", text)
    for output in outputs:
        if "image/png" in output.get("data", {}):
            assert base64.b64decode(output["data"]["image/png"]).startswith(b"\x89PNG")


def test_links_lead_somewhere():
    found = 0
    for path in NOTEBOOKS:
        for link in re.findall(r"\]\(([^)#:\s]+)\)", path.read_text()):
            found += 1
            assert (path.parent / link).exists(), link
    assert found
