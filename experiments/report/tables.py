"""Numbers of a summary as tables where they are flat; what is not is left to the JSON."""

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from . import frame, mathematics

MANY_ROWS = 16  # longer tables are folded
MANY_COLUMNS = 8  # a table with more of them than rows is turned
LONG_TEXT = 30  # letters, from which on a cell has its own width
EQUATIONS = ("latex", "correct_latex")  # columns that are typeset
INTERVAL = {"value", "low", "high", "keys"}


def tables(numbers: Any, title: str) -> tuple[str, bool]:
    """Every flat part of `numbers` as HTML, and whether that is all there is."""
    if isinstance(numbers, list):
        return _records(dict(enumerate(numbers, 1)), title, numbered=False)
    if not isinstance(numbers, Mapping):
        return "", False
    single = {name: value for name, value in numbers.items() if _is_flat(value)}
    alike: dict[Any, dict[str, Any]] = {}  # what has the same fields stands in one table
    for name, value in numbers.items():
        if name not in single:
            fields = frozenset(value) if isinstance(value, Mapping) else name
            alike.setdefault(fields, {})[name] = value
    parts = [(_table([("", [*single]), ("value", [*single.values()])], title), True)] if single else []
    for rows in alike.values():
        ((name, value),) = [*rows.items()][:1]
        parts.append(_records(rows, title) if len(rows) > 1 else tables(value, _words(name)))
    return "".join(part for part, _ in parts), all(whole for _, whole in parts)


def _is_flat(value):
    if isinstance(value, Mapping):
        return set(value) == INTERVAL
    if isinstance(value, list):
        return len(value) <= 3 and not any(isinstance(item, list | Mapping) for item in value)
    return True


def _records(rows, title, numbered=True):
    """A row for each, a column for each of their flat fields."""
    if not rows or not all(isinstance(row, Mapping) for row in rows.values()):
        return "", not rows
    fields = list(dict.fromkeys(name for row in rows.values() for name in row))
    flat = [name for name in fields if all(_is_flat(row.get(name)) for row in rows.values())]
    if not flat:
        return "", False
    if numbered and len(flat) > max(MANY_COLUMNS, len(rows)):  # they are read down, not across
        columns = [(name, [row.get(field) for field in flat]) for name, row in rows.items()]
        return _table([("", flat), *columns], title), flat == fields
    columns = [(name, [row.get(name) for row in rows.values()]) for name in flat]
    return _table([("", [*rows])] * numbered + columns, title), flat == fields


def _table(columns: Sequence[tuple[str, Sequence[Any]]], title: str) -> str:
    aligned = [_is_numeric(values) for _, values in columns]
    head = "".join(
        f'<th scope="col"{" class=number" if numeric else ""}>{html.escape(_words(name)) or "name"}</th>'
        for (name, _), numeric in zip(columns, aligned, strict=True)
    )
    body = "".join(
        "<tr>"
        + "".join(_cell(name, value, numeric) for (name, _), value, numeric in zip(columns, row, aligned, strict=True))
        + "</tr>\n"
        for row in zip(*(values for _, values in columns), strict=True)
    )
    count = len(columns[0][1])
    table = f'<table class="sortable"><thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table>'
    caption = html.escape(title)
    box = frame.scroller(table, title or "Numbers")
    if count > MANY_ROWS:
        return f"<details><summary>{caption or 'All'}, {count} rows</summary>\n{box}</details>\n"
    return f"<h4>{caption}</h4>\n{box}" if title else box


def _cell(name, value, numeric):
    text = shown(value) if name else _words(value)
    if name in EQUATIONS and text:
        return f"<td>{mathematics.equation(text)}</td>"
    known = value.get("value") if isinstance(value, Mapping) else value
    data = f' data-value="{known!r}"' if isinstance(known, int | float) and not isinstance(known, bool) else ""
    kind = "number" if numeric else "interval" if known is not value else "long" if len(text) > LONG_TEXT else ""
    return f"<td{kind and f' class={kind}'}{data}>{html.escape(text)}</td>"


def shown(value: Any) -> str:
    """A flat value as text: four digits, an interval with its bounds."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return f"{shown(value['value'])} ({shown(value['low'])} to {shown(value['high'])})"
    if isinstance(value, list):
        return ", ".join(map(shown, value))
    return str(value)


def _is_numeric(values: Iterable[Any]) -> bool:
    known = [value for value in values if value is not None]
    return bool(known) and all(isinstance(value, int | float) and not isinstance(value, bool) for value in known)


def _words(name):
    return str(name).replace("_", " ")
