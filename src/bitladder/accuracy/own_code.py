"""What of a user's own task runs Python: it is named, and asked for, before any of it is imported."""

import difflib
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bitladder.accuracy.expansion import Leaf
from bitladder.accuracy.task_yaml import FunctionName, is_own
from bitladder.errors import UserError
from bitladder.printable import one_line


def require_trusted(leaves: Iterable[Leaf], trusted: bool) -> None:
    """Raise UserError, naming file and function, for tasks of the user's own that run Python, unless they may.

    Templates are none of it, see `harness.sandbox_templates`; lm-eval's own tasks run what lm-eval comes with.
    """
    if trusted:
        return
    found = [(leaf, code) for leaf in leaves for code in _code_of(leaf)]
    if found:
        leaf, code = found[0]
        others = len({one.name for one, _ in found} - {leaf.name})
        more = f", and so do{'' if others > 1 else 'es'} {others:,} more" if others else ""
        raise UserError(
            f"task {leaf.name}: it runs Python of its own, {code}{more}; read that, and give --trust-remote-code to "
            "let it run"
        )


def _code_of(leaf: Leaf) -> Iterator[str]:
    for function in leaf.functions:
        if is_own(function.file):
            yield f"!function {function} in {function.file}"
    # a function that scores whole answers makes lm-eval look for none by the metrics' names
    listed = None if leaf.config.get("process_results") else leaf.config.get("metric_list")
    if listed and (is_own(leaf.file) or "metric_list" in leaf.overrides):
        from lm_eval.api import metrics  # noqa: F401 - registers them
        from lm_eval.api.registry import metric_registry

        for metric in listed:
            # lm-eval takes any other name for a script, here or on the Hub, and runs it with `evaluate`
            name = metric["metric"]
            if isinstance(name, FunctionName):
                continue
            if metric.get("hf_evaluate") is True or not isinstance(name, str) or name not in metric_registry:
                nearest = difflib.get_close_matches(str(name), metric_registry, n=1)
                meant = f" (lm-eval has {nearest[0]!r})" if nearest else ""
                yield f"the metric {name!r} of `evaluate`, which is a script{meant}, in {leaf.file or leaf.folder}"


@contextmanager
def named_errors(leaf: Leaf) -> Iterator[None]:
    """Inside the block, what goes wrong with a task of the user's own is a UserError that names its file.

    lm-eval checks no definition, templates fail at single documents, and functions are the user's.
    """
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:
        if not is_own(leaf.file):
            raise
        frames = traceback.extract_tb(error.__traceback__)
        place = next((frame for frame in reversed(frames) if Path(frame.filename).is_relative_to(leaf.folder)), None)
        where = f" at line {place.lineno} of {place.filename}" if place else ""
        text = one_line(" ".join(str(error).split())[:300])
        raise UserError(
            f"task {leaf.name}: lm-eval fails at what {leaf.file or leaf.folder} says ({type(error).__name__}: {text}"
            f"{where}); put it right"
        ) from error
