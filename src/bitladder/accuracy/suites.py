"""Named sets of tasks: one table, name -> rows of the accuracy table."""

from bitladder.errors import UnknownNameError
from bitladder.records import TaskGroup


def _row(name: str, title: str, *, in_aggregate: bool = True) -> TaskGroup:
    return TaskGroup(name=name, title=title, tasks=(name,), pooling="documents", in_aggregate=in_aggregate)


_GSM8K = _row("gsm8k", "GSM8K (strict, CoT)").model_copy(update={"tasks": ("gsm8k", "gsm8k_cot"), "pooling": "mean"})


SUITES: dict[str, tuple[TaskGroup, ...]] = {
    "paper": (
        _row("arc_challenge", "ARC-Challenge"),
        _row("arc_easy", "ARC-Easy"),
        _GSM8K,
        _row("hellaswag", "HellaSwag"),
        _row("mmlu", "MMLU"),
        _row("mmlu_humanities", "MMLU humanities", in_aggregate=False),
        _row("mmlu_other", "MMLU other", in_aggregate=False),
        _row("mmlu_social_sciences", "MMLU social sciences", in_aggregate=False),
        _row("mmlu_stem", "MMLU STEM", in_aggregate=False),
    ),
    "builtin": (
        _row("bitladder_knowledge", "Knowledge"),
        _row("bitladder_language", "Language"),
        _row("bitladder_arithmetic", "Arithmetic"),
        _row("bitladder_prose", "Prose (bits per byte)", in_aggregate=False),
    ),
}
"""A row's ``tasks`` are names of lm-eval's or bitladder's tasks and groups."""


def find_suite(name: str) -> tuple[TaskGroup, ...]:
    """The rows of the suite of that name. Raises UnknownNameError."""
    if name not in SUITES:
        raise UnknownNameError("suite", name, SUITES)
    return SUITES[name]


def published_title(name: str) -> str | None:
    """What a suite's table calls a task or group that is a row of its own."""
    rows = (row for suite in SUITES.values() for row in suite)
    return next((row.title for row in rows if row.tasks == (name,) and row.name == name), None)
