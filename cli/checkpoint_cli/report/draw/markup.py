"""Elements of HTML and SVG. Text is escaped unless it is markup already, so no caller can forget it."""

from __future__ import annotations

import html
import re

_CONTROL = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)
"""Characters that HTML forbids, or that change the direction of the text around them."""

_VOID = frozenset({"meta", "link", "br", "hr", "input"})


class Markup(str):
    """Text that is markup: it is not escaped again."""

    __slots__ = ()


def escape(text: str) -> Markup:
    """Return text as markup, for content and for attributes in double quotes."""
    return Markup(html.escape(_CONTROL.sub("\N{REPLACEMENT CHARACTER}", text), quote=True))


def el(element: str, /, *children: str | Markup | None, **attributes: str | float | bool | None) -> Markup:
    """Return an element.

    Args:
        children: Strings are escaped; None is left out.
        attributes: ``_`` in a name stands for ``-``, one at its end is dropped (``class_``). None and False leave the
            attribute out, True writes it without a value; numbers are rounded to two digits.
    """
    parts = [f"<{element}"]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        label = key.rstrip("_").replace("_", "-")
        parts.append(f" {label}" if value is True else f' {label}="{_attribute(value)}"')
    parts.append(">")
    if element in _VOID:
        return Markup("".join(parts))
    parts += [child if isinstance(child, Markup) else escape(child) for child in children if child is not None]
    parts.append(f"</{element}>")
    return Markup("".join(parts))


def join(*parts: Markup) -> Markup:
    """Concatenate markup."""
    return Markup("".join(parts))


def _attribute(value: str | float) -> str:
    if isinstance(value, str):
        return escape(value)
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
