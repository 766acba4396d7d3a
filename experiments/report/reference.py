"""The reference of the library from its docstrings, as pages that need no network."""

import importlib
import importlib.util
import re
import shutil
import tempfile
from pathlib import Path

LIBRARY = "jaxbptt"
BESIDE = ("plotting", "types")  # public, and not in its __all__: neither is wanted by a star
TEMPLATES = Path(__file__).parent / "pdoc"
CODE = re.compile(r"(`+[^`]+`+|^ *(?:>>>|\.\.\.) .*$|^ {4}.*$)", re.MULTILINE)
SET_IN = re.compile(r"( {2,3}\S.*(\n {2,}.*)*|\S.*\S {2,}\S.*\n(.*\n)*.*\S {2,}\S.*)\n?\Z")
SECTIONS = re.compile(r"^(?:Args|Returns|Yields|Raises|Example|Examples|References?|Note|Notes):", re.MULTILINE)


def is_possible() -> bool:
    """Whether pdoc is installed."""
    return importlib.util.find_spec("pdoc") is not None


def write(folder: Path) -> Path:
    """All public modules into `folder`, in place of what stood there; returns its first page."""
    import pdoc
    import pdoc.render

    library = importlib.import_module(LIBRARY)
    for name in library.__all__:
        setattr(library, name, getattr(library, name))  # imported when first used; pdoc reads what is there
    pdoc.render.env.filters["legible"] = legible
    pdoc.render.configure(docformat="google", show_source=False, template_directory=TEMPLATES)
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        pdoc.pdoc(LIBRARY, *(f"{LIBRARY}.{name}" for name in BESIDE), output_directory=aside)
        aside.chmod(0o755)
        shutil.rmtree(folder, ignore_errors=True)
        aside.rename(folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return folder / "index.html"


def legible(docstring: str) -> str:
    """Markdown that means what the docstring says: <leaf> is no tag, and lines set in or in columns stay so."""
    sections = SECTIONS.search(docstring)
    place = sections.start() if sections else len(docstring)
    head, rest = docstring[:place], docstring[place:]
    blocks = re.split(r"(\n{2,})", head)
    head = "".join(
        re.sub(r"^", "    ", block, flags=re.MULTILINE) if SET_IN.match(block) else block for block in blocks
    )
    parts = CODE.split(head + rest)
    parts[::2] = [re.sub(r"<(?=[A-Za-z/])", "&lt;", text) for text in parts[::2]]
    return "".join(parts)
