"""``report.md``: reads as plain text, columns aligned."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bitladder.markdown import markdown_environment
from bitladder.report.figure import Figure
from bitladder.report.text import table_to_markdown

if TYPE_CHECKING:
    from bitladder.report.content import Report


def to_markdown(report: Report) -> str:
    environment = markdown_environment("bitladder.report")
    environment.filters["table"] = table_to_markdown
    environment.tests["drawn"] = lambda figure: isinstance(figure, Figure)
    return environment.get_template("report.md.jinja").render(report=report)
