"""Named sets of tasks: one table, name -> rows of the accuracy table."""

from dataclasses import dataclass
from typing import Literal

from bitladder.errors import UnknownNameError


@dataclass(frozen=True)
class SuiteRow:
    """A row of the table; ``tasks`` are names of lm-eval's or bitladder's tasks and groups."""

    name: str
    title: str
    tasks: tuple[str, ...]
    pooling: Literal["documents", "mean"] = "documents"
    in_aggregate: bool = True


@dataclass(frozen=True)
class Suite:
    name: str
    rows: tuple[SuiteRow, ...]


def _row(name: str, title: str, *, in_aggregate: bool = True) -> SuiteRow:
    return SuiteRow(name, title, (name,), in_aggregate=in_aggregate)


SUITES: dict[str, Suite] = {
    suite.name: suite
    for suite in (
        Suite(
            "paper",
            (
                _row("arc_challenge", "ARC-Challenge"),
                _row("arc_easy", "ARC-Easy"),
                SuiteRow("gsm8k", "GSM8K (strict, CoT)", ("gsm8k", "gsm8k_cot"), pooling="mean"),
                _row("hellaswag", "HellaSwag"),
                _row("mmlu", "MMLU"),
                _row("mmlu_humanities", "MMLU humanities", in_aggregate=False),
                _row("mmlu_other", "MMLU other", in_aggregate=False),
                _row("mmlu_social_sciences", "MMLU social sciences", in_aggregate=False),
                _row("mmlu_stem", "MMLU STEM", in_aggregate=False),
            ),
        ),
        Suite(
            "builtin",
            (
                _row("bitladder_knowledge", "Knowledge"),
                _row("bitladder_language", "Language"),
                _row("bitladder_arithmetic", "Arithmetic"),
                _row("bitladder_prose", "Prose (bits per byte)", in_aggregate=False),
            ),
        ),
    )
}


def find_suite(name: str) -> Suite:
    """The suite of that name. Raises UnknownNameError."""
    if name not in SUITES:
        raise UnknownNameError("suite", name, SUITES)
    return SUITES[name]


def published_title(name: str) -> str | None:
    """What a suite's table calls a task or group that is a row of its own."""
    rows = (row for suite in SUITES.values() for row in suite.rows)
    return next((row.title for row in rows if row.tasks == (name,) and row.name == name), None)
