"""The frame of a page: one file with its style and its script in it, readable without the script."""

import html
from pathlib import Path

HERE = Path(__file__).parent


def document(title: str, lead: str, body: str) -> str:
    """A page; `lead` stands below its title. Both it and `body` are HTML."""
    style, script = ((HERE / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n"
        '<link rel="icon" href="data:,">\n'  # else a browser asks a server for one
        f"<style>\n{style}</style>\n</head>\n<body>\n"
        '<a class="skip" href="#main">Skip to the content</a>\n'
        f"<header>\n<h1>{html.escape(title)}</h1>\n{lead}</header>\n"
        f'<main id="main" tabindex="-1">\n{body}</main>\n'
        f"<script>\n{script}</script>\n</body>\n</html>\n"
    )


def scroller(content: str, label: str) -> str:
    """What may be wider than the page, in a box of its own that scrolls and takes the focus."""
    return f'<div class="scroller" role="region" tabindex="0" aria-label="{html.escape(label)}">{content}</div>\n'


def definitions(pairs: dict[str, str]) -> str:
    """A list of names and values, text both."""
    items = (f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd></div>" for name, value in pairs.items())
    return f"<dl>{''.join(items)}</dl>\n"


def filter_form(items: str, name: str, label: str, choices: str = "") -> str:
    """The text field (and further choices) that hide what does not match among `items`, a CSS selector.

    The script shows the form: without it the fields would do nothing.
    """
    return (
        f'<form class="filter" role="search" aria-label="{html.escape(label)}" data-items="{html.escape(items)}" '
        f'data-name="{name}" hidden><label>{html.escape(label)} <input type="search" name="text" autocomplete="off">'
        f"</label>{choices}<output></output></form>\n"
    )
