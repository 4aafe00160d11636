"""From a suite or task names to the accuracy items of a plan, to their order and stages, and to the table's rows."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Any, Literal

from bitladder.errors import UnknownNameError
from bitladder.machine.libraries import patched
from bitladder.methods import BASELINE
from bitladder.records import AccuracyTask, EngineSettings, Order, TaskGroup, TaskSources, order_key
from bitladder.records.study import ACCURACY_BATCH_SIZE, TOKEN_BUDGET
from bitladder.results.stages import row_stops, shares_for
from bitladder.tasks.expansion import Group, LeafTask, Member
from bitladder.tasks.library import TaskLibrary, as_we_run_it, task_library
from bitladder.tasks.registry import harness_version


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


def accuracy_texts(sources: TaskSources, items: Iterable[AccuracyTask]) -> Iterator[str]:
    """Every prompt, with each of its continuations, as lm-eval builds them; a chat template is not applied."""
    library = task_library(sources)
    for item in items:
        task = library.task(item.task)
        with as_we_run_it(item.seed), library.reading(item.task):
            task.set_fewshot_seed(seed=item.seed)
            task.build_all_requests(limit=item.limit)
        for instance in task.instances:
            context, *rest = instance.args
            yield context + "".join(part for part in rest if isinstance(part, str))


def plan_orders(
    library: TaskLibrary, groups: Sequence[TaskGroup], limits: Mapping[str, int | None], seed: int
) -> dict[str, Order]:
    """The order of each task that the aggregate may rest on; see `unordered_reason`."""
    rows = {
        group.name: {task: document_keys(library, task, limits[task], seed) for task in group.tasks}
        for group in _ordered_rows(library, groups)
    }
    units = {name: sorted({key for keys in tasks.values() for key in keys}) for name, tasks in rows.items()}
    shares = shares_for(max((len(keys) for keys in units.values()), default=0))
    orders: dict[str, Order] = {}
    for name, tasks in rows.items():
        last_keys = [units[name][stop - 1] for stop in row_stops(len(units[name]), shares)]
        for task, keys in tasks.items():
            stops = tuple(sum(key <= last for key in keys) for last in last_keys)
            orders.setdefault(task, Order(seed=seed, stops=stops))
    return orders


def unordered_reason(library: TaskLibrary, groups: Sequence[TaskGroup]) -> str | None:
    """Why no task can be asked in stages: the aggregate would rest on one whose prompts depend on what came before."""
    from lm_eval.api.task import ConfigurableTask

    for group in _ordered_rows(library, groups):
        for name in group.tasks:
            if type(library.task(name)).fewshot_context is not ConfigurableTask.fewshot_context:
                return f"{name} makes its prompts in a way of its own, which may depend on the documents before"
    return None


def _ordered_rows(library: TaskLibrary, groups: Iterable[TaskGroup]) -> list[TaskGroup]:
    """Those that the aggregate may rest on; a text that is scored as a whole is in none."""
    return [
        group
        for group in groups
        if group.in_aggregate and all(library.task(task).OUTPUT_TYPE != "loglikelihood_rolling" for task in group.tasks)
    ]


@lru_cache(maxsize=256)
def document_keys(library: TaskLibrary, name: str, limit: int | None, seed: int) -> list[str]:
    """What the documents of a task are sorted by, in the task's own order."""
    hashes, clusters = library.document_hashes(name, limit), library.clusters(name, limit)
    return [order_key(seed, clusters.get(one, one)) for one in hashes]


def chosen_documents(library: TaskLibrary, name: str, limit: int | None, order: Order) -> list[int]:
    """Which documents of a task a chunk asks, by their numbers in the task's own order."""
    assert order.chunk is not None
    keys = document_keys(library, name, limit, order.seed)
    start, stop = order.chunk
    return sorted(sorted(range(len(keys)), key=lambda number: (keys[number], number))[start:stop])


@contextmanager
def prompts_of_the_whole(task: Any, documents: Iterable[Any], chosen: Sequence[int] | None) -> Iterator[None]:
    """Few-shot examples are drawn for the chosen documents as if all were asked; ``chosen``: None where all are.

    lm-eval draws them for one document after the other: a prompt would depend on which come before.
    """
    shots = task.config.num_fewshot
    if not shots or chosen is None:
        yield
        return
    wanted, drawn = set(chosen), []
    for number, doc in enumerate(documents):
        own = doc if task.fewshot_cfg.split == task.config.test_split else None
        examples = task.sampler.sample(n=shots, eval_doc=own)
        if number in wanted:
            drawn.append(examples)
    left = iter(drawn)
    with patched("lm_eval.api.samplers:ContextSampler.sample", lambda *_, **__: next(left), task.sampler):
        yield


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
    if isinstance(member, LeafTask):
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
