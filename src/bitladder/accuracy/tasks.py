"""From a suite or task names to the accuracy items of a plan, and to the table's rows."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

from bitladder.accuracy.expansion import Group, Leaf, Member
from bitladder.accuracy.library import TaskLibrary, task_library
from bitladder.accuracy.order import plan_orders, unordered_reason
from bitladder.accuracy.registry import harness_version
from bitladder.accuracy.rows import count_once
from bitladder.accuracy.suites import find_suite, published_title
from bitladder.defaults import ACCURACY_BATCH_SIZE, TOKEN_BUDGET
from bitladder.errors import UnknownNameError
from bitladder.records import AccuracyTask, EngineSettings, Order, TaskGroup, TaskSources
from bitladder.rungs import BASELINE

CUSTOM = "custom"
"""the suite of a study that names its tasks itself"""


@dataclass(frozen=True)
class TaskSet:
    """Everything that is asked, and how it is pooled."""

    suite: str
    groups: tuple[TaskGroup, ...]
    """table rows, in order; every leaf task is in at least one"""
    items: tuple[AccuracyTask, ...]
    document_counts: dict[str, int]
    """documents that are asked, by leaf task"""
    remarks: tuple[str, ...] = ()
    """what is planned otherwise than it was asked for"""


@dataclass(frozen=True)
class TaskRequest:
    """What a study is to ask, and how."""

    sources: TaskSources
    suite: str
    """named set of tasks, where the sources name none"""
    limit: int | None
    """documents a task"""
    limits: Mapping[str, int]
    """documents of one task, where it differs"""
    backend: Literal["hf", "bitladder"]
    engine: str | None
    """whose model it asks; None: the default's"""
    engine_settings: EngineSettings
    batch_size: int
    """rows of a batch of lm-eval's own backend"""
    token_budget: int | None
    """tokens of one forward of ours; None: the device's"""
    chat_template: bool
    until_decided: bool
    """ask in stages"""
    batch_dependence: bool
    """score some documents again in other batches"""
    rungs: tuple[str, ...]
    """all that are asked"""


def resolve_tasks(request: TaskRequest, device: str) -> TaskSet:
    """Build the tasks that the sources, or else the suite, name.

    Raises UnknownNameError for an unknown suite, task or key of ``limits``, UserError for data that isn't there.
    """
    library = task_library(request.sources)
    rows = _rows_of(request, library)
    limits = _limits(request, library, rows)
    orders, remarks = _orders(request, library, rows, limits)
    items = tuple(
        AccuracyTask(
            task=name,
            task_hash=library.task_hash(name, limit),
            limit=limit,
            num_fewshot=library.task(name).config.num_fewshot,
            # our backend packs by tokens; what it can't run goes lm-eval's way in batches of one size
            batch_size=request.batch_size if request.backend == "hf" else ACCURACY_BATCH_SIZE,
            seed=request.sources.seed,
            chat_template=request.chat_template,
            device=device,
            backend=request.backend,
            token_budget=_token_budget(request, device),
            harness_version=harness_version(),
            order=orders.get(name),
            engine=request.engine,
            engine_settings=request.engine_settings,
        )
        for name, limit in limits.items()
    )
    return TaskSet(
        suite=CUSTOM if request.sources.requested else request.suite,
        groups=tuple(rows),
        items=items,
        document_counts={name: library.count(name, limit) for name, limit in limits.items()},
        remarks=remarks,
    )


def require_names(request: TaskRequest) -> None:
    """Raise as `resolve_tasks` for all that can be told without data and without a model."""
    library = task_library(request.sources)
    if request.limits:
        _limits(request, library, _rows_of(request, library))


def _rows_of(request: TaskRequest, library: TaskLibrary) -> list[TaskGroup]:
    return _custom_rows(library) if request.sources.requested else _suite_rows(library, request.suite)


def _orders(
    request: TaskRequest, library: TaskLibrary, rows: Sequence[TaskGroup], limits: Mapping[str, int | None]
) -> tuple[dict[str, Order], tuple[str, ...]]:
    """The order of each task that is asked in stages; none, and why, where asking can't stop when decided."""
    if not request.until_decided:
        return {}, ()
    if BASELINE not in request.rungs or len(request.rungs) < 2:
        reason: str | None = f"nothing is held against {BASELINE}"
    else:
        reason = unordered_reason(library, rows)
    if reason is not None:
        return {}, (f"every question is asked, --until-decided notwithstanding: {reason}",)
    return plan_orders(library, rows, limits, request.sources.seed), ()


def _token_budget(request: TaskRequest, device: str) -> int | None:
    if request.backend != "bitladder":
        return None
    return request.token_budget or TOKEN_BUDGET[device.partition(":")[0]]


def _suite_rows(library: TaskLibrary, suite: str) -> list[TaskGroup]:
    return [
        row.model_copy(update={"tasks": _names(chain.from_iterable(map(library.members, row.tasks)))})
        for row in find_suite(suite)
    ]


def _custom_rows(library: TaskLibrary) -> list[TaskGroup]:
    """A row for each task or group asked for and for each group inside it; each question enters the aggregate once."""
    rows: dict[str, TaskGroup] = {}
    for member in chain.from_iterable(library.requested.values()):
        for row in _rows(member):
            rows.setdefault(row.name, row)
    return list(count_once(rows.values()))


def _rows(member: Member, prefix: str = "", in_aggregate: bool = True) -> Iterator[TaskGroup]:
    """A group that lm-eval pools into one score is a row, with its inner groups below it; another is its members."""
    if isinstance(member, Group) and not member.has_one_score:
        for inner in member.members:
            yield from _rows(inner, prefix, in_aggregate)
        return
    title = published_title(member.name) or f"{prefix}{member.title}"
    if isinstance(member, Leaf):
        # Perplexities are shown and enter no aggregate.
        counts = in_aggregate and member.config.get("output_type") != "loglikelihood_rolling"
        yield TaskGroup(name=member.name, title=title, tasks=(member.name,), pooling="documents", in_aggregate=counts)
        return
    assert member.pooling is not None
    tasks = _names(member.members)
    yield TaskGroup(name=member.name, title=title, tasks=tasks, pooling=member.pooling, in_aggregate=in_aggregate)
    for inner in member.members:
        if isinstance(inner, Group):
            yield from _rows(inner, f"{title} ", in_aggregate=False)


def _names(members: Iterable[Member]) -> tuple[str, ...]:
    """Of the leaf tasks in them."""
    return tuple(leaf.name for member in members for leaf in member.leaves())


def _limits(request: TaskRequest, library: TaskLibrary, rows: Sequence[TaskGroup]) -> dict[str, int | None]:
    """Documents by leaf task: its own limit, else that of a row or request that holds it, else the request's own."""
    names = tuple(dict.fromkeys(task for row in rows for task in row.tasks))
    parts = {
        **{name: (name,) for name in names},
        **{requested: _names(members) for requested, members in library.requested.items()},
        **{row.name: row.tasks for row in rows},
    }
    for key in request.limits:
        if key not in parts:
            raise UnknownNameError("task in limits:", key, parts)
    limits: dict[str, int | None] = dict.fromkeys(names, request.limit)
    for key in sorted(request.limits, key=lambda key: -len(parts[key])):
        limits.update(dict.fromkeys(parts[key], request.limits[key]))
    return limits
