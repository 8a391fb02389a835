"""HTML from Python calls: whatever is not markup already is escaped, so nothing from a study can become any."""

import html
from collections.abc import Sequence

Attribute = str | int | float | bool


class Markup(str):
    """Text that is HTML; plain text is not until `element` has escaped it."""

    __slots__ = ()


def text(value: object) -> Markup:
    """The value as text in HTML."""
    return value if isinstance(value, Markup) else Markup(html.escape(str(value)))


def joined(*parts: object) -> Markup:
    """Parts behind each other."""
    return Markup("".join(map(text, parts)))


EMPTY_ELEMENTS = frozenset({"input", "link", "meta", "br"})


def element(name: str, /, *inside: object, **attributes: Attribute | None) -> Markup:
    """An element of that name.

    Attributes are written as Python can: `class_`, `aria_label`. True stands for one without value; False and None
    leave it out.
    """
    given = "".join(
        f" {_attribute_name(key)}" + ("" if value is True else f'="{html.escape(str(value))}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    if name in EMPTY_ELEMENTS:
        return Markup(f"<{name}{given}>")
    return Markup(f"<{name}{given}>{joined(*inside)}</{name}>")


def _attribute_name(key: str) -> str:
    # Those of SVG are written in camel case and stay as they are.
    return key.rstrip("_").replace("_", "-")


def table(titles: Sequence[str], rows: Sequence[Sequence[object]], *, caption: str) -> Markup:
    """A table whose cells carry their column's title, so that a narrow page can show each row as a card."""
    head = element("tr", *(element("th", title, scope="col") for title in titles))
    body = [
        element("tr", *(element("td", cell, data_title=title) for title, cell in zip(titles, row, strict=True)))
        for row in rows
    ]
    return element("table", element("caption", caption), element("thead", head), element("tbody", *body))
