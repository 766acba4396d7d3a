"""Run a notebook's cells and print what each of them shows, or keep it in the file (needs nbclient and ipykernel).

python -m tests.experiments.notebooks [--remake] PATH
"""

import ast
import contextlib
import io
import json
import sys
from pathlib import Path

import matplotlib as mpl


def read_cells(path):
    """The code cells, each with its source in one string."""
    cells = json.loads(Path(path).read_text(encoding="utf-8"))["cells"]
    return [{**cell, "source": "".join(cell["source"])} for cell in cells if cell["cell_type"] == "code"]


def run(source, names):
    """(text, number of pictures) of one cell: what it prints, figures it leaves open, the value of its last line."""
    from matplotlib import pyplot as plt

    tree, last = ast.parse(source), None
    if isinstance(tree.body[-1], ast.Expr):
        last = ast.Expression(tree.body.pop().value)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(tree, "<cell>", "exec"), names)
        value = None if last is None else eval(compile(last, "<cell>", "eval"), names)
    pictures = len(plt.get_fignums())
    plt.close("all")
    if hasattr(value, "_repr_png_"):
        pictures, value = pictures + value._repr_png_().startswith(b"\x89PNG"), None
    return printed.getvalue() + ("" if value is None else repr(value)), pictures


def run_all(path):
    """What every code cell shows, in one interpreter and without Jupyter."""
    from matplotlib import pyplot as plt

    mpl.use("agg")
    plt.show = lambda: None  # figures stay open until the cell has ended
    names = {"__name__": "__main__"}
    return [run(cell["source"], names) for cell in read_cells(path)]


def remake(path):
    """Run the notebook in a kernel and keep what it shows, without times and versions."""
    import nbclient
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    folder = {"metadata": {"path": str(Path(path).resolve().parents[1])}}
    nbclient.NotebookClient(notebook, resources=folder, record_timing=False, coalesce_streams=True).execute()
    notebook.metadata.language_info = {"name": "python"}
    nbformat.write(notebook, path)


if __name__ == "__main__":
    if sys.argv[1] == "--remake":
        remake(sys.argv[2])
    else:
        print(json.dumps(run_all(sys.argv[1])))
