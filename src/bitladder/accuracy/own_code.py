"""What of a user's own task runs Python, or may: it is named, and asked for, before any of it is imported or read."""

import difflib
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bitladder.accuracy.expansion import Leaf
from bitladder.accuracy.task_yaml import FunctionName, is_own
from bitladder.errors import UserError
from bitladder.printable import one_line

_PLAIN_OPTIONS = (
    "data_dir data_files field name revision split streaming trust_remote_code verification_mode keep_in_memory "
    "keep_linebreaks sample_by columns filters batch_size chunksize sep delimiter header names column_names index_col "
    "usecols engine quotechar quoting escapechar doublequote comment encoding encoding_errors skiprows skipfooter "
    "nrows na_values keep_default_na na_filter true_values false_values skipinitialspace skip_blank_lines thousands "
    "decimal lineterminator on_bad_lines newlines_in_values comment_prefix skip_docstart"
)
"""keys of ``dataset_kwargs`` that say what is read and how rows are told apart. Others say where copies of it go, or
hand ``datasets`` objects of Python's; ``trust_remote_code`` does nothing any more, lm-eval drops it."""
_PLAIN_READERS = frozenset({"arrow", "conll", "csv", "json", "parquet", "text", "webdataset", "xml"})
"""of those that ``datasets`` comes with; the one called pandas unpickles, others follow what their files name"""


def require_trusted(leaves: Iterable[Leaf], trusted: bool) -> None:
    """Raise UserError, naming file and function, for tasks of the user's own that run Python, unless they may; and for
    those that ask for data in a way by which files may be written or code run.

    Templates are none of it, see `harness.sandbox_templates`; lm-eval's own tasks run what lm-eval comes with.
    """
    if trusted:
        return
    found = [(leaf, what) for leaf in leaves for what in (*_code_of(leaf), *_data_ways_of(leaf))]
    if found:
        leaf, what = found[0]
        others = len({one.name for one, _ in found} - {leaf.name})
        more = f", and so do{'' if others > 1 else 'es'} {others:,} more" if others else ""
        raise UserError(f"task {leaf.name}: it {what}{more}; read that, and give --trust-remote-code to let it run")


def _data_ways_of(leaf: Leaf) -> Iterator[str]:
    where = leaf.file or leaf.folder
    if is_own(leaf.file) or not leaf.overrides.keys().isdisjoint({"dataset_kwargs", "metadata"}):
        for key in ("custom_dataset", "class"):
            function = leaf.config.get(key)
            if isinstance(function, FunctionName) and not is_own(function.file):
                yield f"gives lm-eval's {key} {function} arguments of its own, in {where}"
    if is_own(leaf.file) or "dataset_kwargs" in leaf.overrides:
        for option in leaf.config.get("dataset_kwargs") or {}:
            if option not in _PLAIN_OPTIONS.split():
                yield f"may write files by dataset_kwargs: {option!r} in {where}"
    if is_own(leaf.file) or "dataset_path" in leaf.overrides:
        from datasets import packaged_modules

        reader = leaf.config.get("dataset_path")
        if reader in packaged_modules._PACKAGED_DATASETS_MODULES and reader not in _PLAIN_READERS:
            yield f"may run Python by the dataset_path {reader!r} in {where}"


def _code_of(leaf: Leaf) -> Iterator[str]:
    for function in leaf.functions:
        if is_own(function.file):
            yield f"runs Python of its own, !function {function} in {function.file}"
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
                where = leaf.file or leaf.folder
                yield f"runs Python of its own, the metric {name!r} of `evaluate`, which is a script{meant}, in {where}"


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
