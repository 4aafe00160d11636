"""The texts that a study's accuracy tasks put to a model, before they are tokenized."""

from collections.abc import Iterable, Iterator

from bitladder.accuracy.harness import as_we_run_it
from bitladder.accuracy.library import task_library
from bitladder.records import AccuracyTask, TaskSources


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
