"""The order that documents are asked in where asking stops when decided, and the stages that it is cut into.

A document's place is that of its cluster's hash with the seed: the same for all rungs, in any process, and for the
question that several tasks ask. Each stage asks the same share of every row's clusters.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from bitladder.accuracy.library import TaskLibrary
from bitladder.patches import patched
from bitladder.records import Order, TaskGroup, order_key
from bitladder.stages import row_stops, shares_for


def plan_orders(
    library: TaskLibrary, groups: Sequence[TaskGroup], limits: Mapping[str, int | None], seed: int
) -> dict[str, Order]:
    """The order of each task that the aggregate may rest on; see `unordered_reason`."""
    rows = {
        group.name: {task: document_keys(library, task, limits[task], seed) for task in group.tasks}
        for group in _rows(library, groups)
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

    for group in _rows(library, groups):
        for name in group.tasks:
            if type(library.task(name)).fewshot_context is not ConfigurableTask.fewshot_context:
                return f"{name} makes its prompts in a way of its own, which may depend on the documents before"
    return None


def _rows(library: TaskLibrary, groups: Iterable[TaskGroup]) -> list[TaskGroup]:
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
