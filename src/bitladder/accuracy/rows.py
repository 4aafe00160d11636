"""Which rows of a table make up the aggregate."""

from collections.abc import Iterable

from bitladder.records import TaskGroup


def count_once(rows: Iterable[TaskGroup]) -> tuple[TaskGroup, ...]:
    """The rows in their order, with each question in the aggregate once: of rows that share a task, in the largest.

    A row that was in no aggregate stays out.
    """
    rows = tuple(rows)
    counted: set[str] = set()
    inside: set[str] = set()
    for row in sorted(rows, key=lambda row: -len(row.tasks)):
        if row.in_aggregate and counted.isdisjoint(row.tasks):
            counted.update(row.tasks)
            inside.add(row.name)
    return tuple(row.model_copy(update={"in_aggregate": row.name in inside}) for row in rows)
