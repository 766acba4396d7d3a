import itertools
import json
import re
import shutil
from html.parser import HTMLParser
from urllib.parse import unquote

import pytest

from experiments import __main__ as entry
from experiments import identities
from experiments.report import mathematics, page, reference, runs, tables

from .made_up import png, results, write_run

EMPTY = {"meta", "link", "img", "input", "br", "wbr"}


class Checker(HTMLParser):
    """What is open when a tag closes, and every attribute of every tag."""

    def __init__(self, text):
        super().__init__()
        self.open, self.seen, self.text = [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def all(self, tag, attribute):
        return [attributes[attribute] for name, attributes in self.seen if name == tag and attribute in attributes]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = results(tmp_path_factory.mktemp("results"))
    assert entry.main(["report", str(folder), "--no-api"]) == 0
    return folder


@pytest.fixture(scope="module")
def checked(made):
    return Checker((made / "index.html").read_text())


def test_every_run_is_there_in_the_order_of_the_experiments(checked):
    assert checked.all("section", "id") == ["run-identities", "run-vanishing", "run-gates", "run-once----again--ü"]
    text = " ".join(" ".join(checked.text).split())
    for words in (
        "4 runs of 4 of the 21 experiments",
        "once & <again> ü",
        "a run of training",
        "A check failed.",
        "a < b",
    ):
        assert words in text, words
    for words in ("XLA_FLAGS --one=1 --two", "444c5cc, with changes", "a & b <c>", "41 s · 1.5 GiB", "text default"):
        assert words in text, words
    assert "2 folders left out gates.partial : not finished; --resume goes on with it" in text
    assert "old : no run.json: written by an older version" in text


def test_what_was_found_and_its_numbers(checked):
    text = " ".join(" ".join(checked.text).split())
    assert "HOLDS : a < b difference: 0.4" in text
    assert "All that was printed, 40 lines" in text
    assert "name rate loss gru 0.01 3 (2 to 4) lstm 0.2 11 (10 to 12)" in text
    assert "summary.json as it was written" in text  # path is not flat
    assert "identities, 128 rows" in text
    assert "identities.json as it was written" not in text


def test_links_lead_to_files_and_nothing_is_loaded(made, checked):
    ids = {attributes["id"] for _, attributes in checked.seen if "id" in attributes}
    assert len(ids) == sum("id" in attributes for _, attributes in checked.seen)
    for link in checked.all("a", "href"):
        assert link[1:] in ids if link.startswith("#") else (made / unquote(link)).is_file(), link
    for name in ("arrays.npz", "summary.json", "config.json", "run.json", "figure.png"):
        assert f"gates/{name}" in checked.all("a", "href")
    assert all(source.startswith("data:image/png;base64,") for source in checked.all("img", "src"))
    assert len(checked.all("img", "src")) == 4
    assert all(len(alt) > 20 for alt in checked.all("img", "alt"))
    for file in ("index.html", "identities/identities.html"):
        assert not re.search(r"(?:src|href|url)\s*[=(]\s*[\"']?(?:https?:)?//", (made / file).read_text())


def test_headings_are_in_order(made, checked):
    for text in (checked, Checker((made / "identities" / "identities.html").read_text())):
        levels = [int(tag[1]) for tag, _ in text.seen if re.fullmatch(r"h\d", tag)]
        assert levels[0] == 1
        assert levels.count(1) == 1
        assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


def test_the_page_may_stand_elsewhere(made, tmp_path, capsys):
    assert entry.main(["report", str(made), "--no-api", "--out", str(tmp_path / "new" / "page.html")]) == 0
    assert "4 runs, 2 folders left out" in capsys.readouterr().out
    links = Checker((tmp_path / "new" / "page.html").read_text()).all("a", "href")
    assert all((tmp_path / "new" / unquote(link)).is_file() for link in links if not link.startswith("#"))


BROKEN = {
    "no JSON": (lambda run: (run / "run.json").write_text("{"), "run.json: not JSON"),
    "a list": (lambda run: (run / "run.json").write_text("[]"), "run.json: got list, expected an object"),
    "a changed file": (lambda run: (run / "arrays.npz").write_bytes(b"x"), "arrays.npz: not as this run wrote it"),
    "a lost file": (lambda run: (run / "arrays.npz").unlink(), "arrays.npz: No such file or directory"),
}
CHANGED = {
    "seconds": ("soon", "run.json: seconds is of type str"),
    "started": ("today", "run.json: started is 'today', not a time"),
    "lines": ([1], "run.json: lines are not all text"),
    "files": ({"../x": "0"}, "run.json: '../x' is not a file of the folder"),
}


@pytest.mark.parametrize("case", [*BROKEN, *CHANGED, "missing", "no PNG", "no numbers"])
def test_a_broken_run_is_left_out_with_a_reason(case, tmp_path):
    write_run(tmp_path / "gates", {"figure.png": png()})
    broken = tmp_path / "broken"
    write_run(broken, {"arrays.npz": b"1"}, **({case: CHANGED[case][0]} if case in CHANGED else {}))
    reason = CHANGED[case][1] if case in CHANGED else ""
    if case in BROKEN:
        damage, reason = BROKEN[case]
        damage(broken)
    elif case not in CHANGED:
        shutil.rmtree(broken)
        contents = {"no PNG": {"figure.png": b"GIF"}, "no numbers": {"summary.json": b"\xff"}}.get(case, {})
        record = write_run(broken, contents)
        if case == "missing":
            del record["device"]
            (broken / "run.json").write_text(json.dumps(record))
        reason = {"no PNG": "figure.png: not a PNG", "no numbers": "summary.json: not JSON"}.get(
            case, "device is missing"
        )
    found, ((name, said),) = runs.collect(tmp_path, ["gates"])
    assert [run.name for run in found] == ["gates"]
    assert name == "broken"
    assert reason in said
    assert entry.main(["report", str(tmp_path), "--no-api"]) == 0


def test_nothing_to_report_is_one_line(tmp_path, capsys):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "config.json").write_text("{}")
    for arguments, line in [
        (["nowhere"], "nowhere: no such folder; python -m experiments NAME writes one"),
        ([str(tmp_path)], "no finished run in it (1 left out, old: no run.json: written by an older"),
        (["--nonsense"], "unrecognized arguments: --nonsense"),
    ]:
        assert entry.main(["report", *arguments]) == 2
        error = capsys.readouterr().err
        assert error.startswith("experiments report: ")
        assert line in error
        assert error.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"old"}


def test_the_first_verdict(tmp_path):
    def verdict(*lines):
        shutil.rmtree(tmp_path / "gates", ignore_errors=True)
        write_run(tmp_path / "gates", {}, lines=list(lines))
        return runs.read(tmp_path / "gates").verdict

    read = "text: 27 symbols: space, abc; nothing dropped"
    assert verdict(read, "id  verdict\nS1  holds", "", "two rows: 1 holds") == "two rows: 1 holds"
    assert verdict("mean over keys:", "0.3", "FAILS: it grows", "    slope: 1") == "FAILS: it grows"
    assert verdict("FAILS: it grows", "  slope: 1", "HOLDS: it stays", "  2") == "FAILS: it grows (and 1 more)"
    assert verdict(read, "mean over keys:", " 0.3") == "0.3"
    assert verdict("at 1e-3", "at 1e-4", "at 1e-5") == "at 1e-3 (and 2 more)"
    assert verdict(read, "elman\n  Proved.\n  Vanishing.", "gru\n  Proved.") == "elman: Proved. (and 1 more)"
    assert verdict() == ""


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.04, "0.04 s"), (41.34, "41 s"), (119, "2 min"), (4000, "67 min"), (9000, "2.5 h")]
)
def test_durations(seconds, words):
    assert page.duration(seconds) == words


def test_sizes():
    assert [page.size(number) for number in (12, 2048, 3 * 2**19, 2**31)] == ["12 B", "2 KiB", "1.5 MiB", "2 GiB"]


def test_what_is_flat_becomes_a_table():
    text, complete = tables.tables({"a": {"x": 1.5, "y": None}, "b": {"x": 1e-9, "y": "<"}, "c": True}, "")
    assert complete
    assert re.sub("<[^>]*>", " ", text).split() == [
        "name",
        "value",
        "c",
        "yes",
        "name",
        "x",
        "y",
        "a",
        "1.5",
        "b",
        "1e-09",
        "&lt;",
    ]
    assert 'data-value="1e-09"' in text
    wide = {name: {f"field_{i}": i for i in range(9)} for name in ("elman", "lstm")}
    turned = re.sub("<[^>]*>", " ", tables.tables(wide, "")[0]).split()
    assert turned[:6] == ["name", "elman", "lstm", "field", "0", "0"]
    assert tables.tables({"deep": [[1, 2], [3]]}, "") == ("", False)
    assert tables.tables([], "") == ("", True)


def test_every_equation_becomes_mathml():
    pytest.importorskip("latex2mathml")
    for row in identities.load().values():
        for latex in filter(None, (row.latex, row.correct_latex)):
            pieces = Checker(mathematics.equation(latex))
            assert "\\" not in "".join(pieces.text), row.id
            assert all(pieces.all("math", "alttext"))
            assert len(pieces.all("math", "alttext")) == len(mathematics.split(latex))


def test_a_long_equation_breaks_outside_its_brackets():
    long = mathematics.split(r"a=f(b=c_{t+1})+\left\{d+e\right\}\rightarrow g,\quad\delta=1")
    assert long == ["a=f(b=c_{t+1})", r"+\left\{d+e\right\}", r"\rightarrow g,", r"\quad\delta=1"]
    assert mathematics.split(r"=\mathrm{so\ it\ is}") == [r"=\mathrm{so}", r"\ \mathrm{it}", r"\ \mathrm{is}"]


def test_without_latex2mathml_an_equation_is_an_outline(monkeypatch):
    monkeypatch.setattr(mathematics, "convert", None)
    for row in list(identities.load().values())[::8]:
        assert re.search(r'<path d="M.*Z', mathematics.equation(row.latex)), row.id
    assert mathematics.equation(r"\nosuch<") == r'<p class="equation"><code>\nosuch&lt;</code></p>'


@pytest.mark.parametrize(("possible", "words"), [(False, "pip install pdoc"), (True, "Reference of the library")])
def test_the_page_says_where_the_reference_is(possible, words, made, tmp_path, monkeypatch):
    monkeypatch.setattr(reference, "is_possible", lambda: possible)
    monkeypatch.setattr(reference, "write", lambda folder: write_run(folder, {"index.html": b""}))
    shutil.copytree(made / "gates", tmp_path / "gates")
    assert entry.main(["report", str(tmp_path)]) == 0
    text = (tmp_path / "index.html").read_text()
    assert words in text
    assert ('href="api/index.html"' in text) == possible
    shutil.rmtree(tmp_path / "api", ignore_errors=True)
    assert entry.main(["report", str(tmp_path), "--no-api"]) == 0
    assert words not in (tmp_path / "index.html").read_text()


def test_prose():
    assert (
        mathematics.prose("h_t = W_hhᵀ h_{t−1} < ½^10")
        == "h<sub>t</sub> = W<sub>hh</sub>ᵀ h<sub>t−1</sub> &lt; ½<sup>10</sup>"
    )


def test_docstrings_keep_what_they_say():
    said = "Sum.\n\n  a    first\n  b    second\n\nOf params.<leaf>, `<b>`.\n\nArgs:\n  x: <y>.\n\n  More.\n"
    meant = (
        "Sum.\n\n      a    first\n      b    second\n\nOf params.&lt;leaf>, `<b>`.\n\nArgs:\n  x: &lt;y>.\n\n  More.\n"
    )
    assert reference.legible(said) == meant


def test_the_reference_shows_what_is_public(tmp_path, made, capsys):
    pytest.importorskip("pdoc")
    import jaxbptt

    first = reference.write(tmp_path / "api")
    assert first.is_file()
    modules = {path.stem for path in (tmp_path / "api" / "jaxbptt").iterdir()}
    rooms = {name for name in jaxbptt.__all__ if not callable(getattr(jaxbptt, name))}
    assert modules == {*rooms, "plotting", "types"}
    for module in modules - {"types"}:  # which names no __all__
        text = (tmp_path / "api" / "jaxbptt" / f"{module}.html").read_text()
        shown = Checker(text).all("section", "id")
        assert set(getattr(jaxbptt, module).__all__) <= set(shown), module
    for path in (tmp_path / "api").rglob("*.html"):
        assert not re.search(r"<(?:script|link|img|a)[^>]*(?:src|href)=[\"'](?:https?:)?//", path.read_text()), path
    assert [path.name for path in tmp_path.iterdir()] == ["api"]


@pytest.mark.parametrize("name", entry.NAMES)
def test_every_experiment_says_how_long_it_takes_and_what_its_figures_show(name):
    experiment = entry.find_experiment(name)
    assert re.fullmatch(r"a few s|[\d.]+ (s|min)", experiment.takes)
    assert set(experiment.alt) == {experiment.figure_file, *experiment.further_plots}
    assert all(60 < len(text) < 600 and text.endswith(".") for text in experiment.alt.values())
