"""The files of the experiments: small, documented, on public names only; what their READMEs name is there."""

import ast
import re
from pathlib import Path

import pytest

from experiments import __main__ as entry

FOLDER = Path(__file__).parents[2] / "experiments"
FILES = sorted(FOLDER.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(FOLDER)))
def test_files_keep_the_house_rules(path):
    source = path.read_text()
    assert source.count("\n") <= 300
    tree = ast.parse(source)
    assert ast.get_docstring(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            assert node.level <= 1  # from a room to the one beside it, or by its whole name
        else:
            names = []
        private = [name for name in names if name.startswith(("jax.", "jaxbptt.")) and "._" in name]
        assert not private
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Lambda):
            assert node.value.lineno == node.value.end_lineno  # a longer one is a def


@pytest.mark.parametrize("readme", ["README.md", "benchmark/README.md"])
def test_what_the_readmes_show_exists(readme):
    path = FOLDER / readme
    for link in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
        assert (path.parent / link).exists(), link


def test_the_readme_knows_every_experiment_and_file():
    text = (FOLDER / "README.md").read_text()
    assert re.findall(r"^\| `(\w+)` \| .*\?", text, re.MULTILINE) == list(entry.NAMES)
    map_ = text[text.index("## Map") :]
    named = {name.rstrip("/") for name in re.findall(r"`([\w/]+(?:\.py|/))`", map_)}
    top = {path.name for path in FOLDER.glob("*.py")} | {path.parent.name for path in FOLDER.glob("*/__init__.py")}
    assert top - {"__init__.py"} <= named
    assert all((FOLDER / name).exists() or (FOLDER / "identities" / name).exists() for name in named)
