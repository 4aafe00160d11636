"""Markdown from templates, with text from outside made harmless."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from bitladder.printable import printable

if TYPE_CHECKING:
    from jinja2 import Environment


def markdown_environment(package: str) -> Environment:
    """The templates of a package; text from outside goes through the filter `md`."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader(package),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # Markdown is escaped by the filter
    )
    environment.filters["md"] = escape
    return environment


def escape(text: str) -> str:
    """Text that Markdown shows as it is: no tags, links, images, table breaks, headings, lists, rules or fences."""
    flat = printable(" ".join(text.split()))
    escaped = re.sub(r"([\\`*<|])", r"\\\1", flat)
    escaped = re.sub(r"\](?=[(\[])", r"]\\", escaped)  # of a link, and of one by reference
    return re.sub(r"^(?=[-+#=>~](?:[-+#=>~\s]|$)|\[[^\]]*\]:)", r"\\", escaped)  # last: what a reference is to
