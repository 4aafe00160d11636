"""lm-eval's own logs of any backend as records: ``samples_TASK_DATE.jsonl`` and ``results_DATE.json`` of a folder.

They are what ``lm_eval run --log_samples --output_path DIR`` writes (0.4.13; the names are older), and nothing but the
files is needed to read them.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic_core import from_json

from bitladder.accuracy.rows import count_once
from bitladder.accuracy.samples import Sample, document_outcome, harness_results, make_document, require_numbers
from bitladder.errors import BrokenFileError, UserError
from bitladder.records import (
    AccuracyOutcome,
    DocumentOutcome,
    MetricInfo,
    TaskDocuments,
    TaskGroup,
    hash_json,
)

_DATE = r"\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d(?:\.\d+)?"
_SAMPLES = re.compile(rf"samples_(?P<task>.+)_(?P<date>{_DATE})\.jsonl")
_RESULTS = re.compile(rf".*_(?P<date>{_DATE})\.json")
_ASKED = {
    "chat template": "chat_template_sha",
    "system instruction": "system_instruction_sha",
    "multi-turn few-shot": "fewshot_as_multiturn",
}
"""What of a run's results, beside a task's own, shapes its prompts."""
_MODEL = ("model", "model_dtype", "model_num_parameters", "model_revision", "model_sha")
"""What of a run's configuration says which model answered, beside the arguments it was made with."""
_NEEDED = dict.fromkeys(("doc_hash", "prompt_hash", "doc_id", "doc", "arguments", "resps", "filter", "metrics"))
"""keys of a sample, those that an old lm-eval lacks first"""

Json = dict[str, Any]


class LogFolder:
    """The newest log of each task in a folder, or in the one folder below it that has some.

    Raises UserError where there are no logs, or logs of several models.
    """

    def __init__(self, directory: Path) -> None:
        if not directory.is_dir():
            raise UserError(
                f"{directory}: no such folder; expected a study's, DIR:RUNG of one, or lm-eval's --output_path"
            )
        self.directory = _samples_folder(directory)
        self._runs: dict[str, Json] = {}
        dates: dict[str, list[str]] = {}
        for path in self.directory.iterdir():
            match = _SAMPLES.fullmatch(path.name)
            if match:
                dates.setdefault(match["task"], []).append(match["date"])
        self._dates = dict(sorted(((task, max(found)) for task, found in dates.items()), key=lambda item: item[::-1]))
        self.notes = tuple(
            f"{self.directory}: {len(found)} logs of {task}, of which the newest is read, of {max(found)}"
            for task, found in dates.items()
            if len(found) > 1
        )
        self._require_one_model(sorted({date for found in dates.values() for date in found}))

    @cached_property
    def _results_files(self) -> dict[str, Path]:
        found = ((_RESULTS.fullmatch(path.name), path) for path in self.directory.iterdir())
        return {match["date"]: path for match, path in found if match}

    def _run(self, task: str) -> Json:
        """The results of the run that logged a task."""
        date = self._dates[task]
        if date not in self._runs:
            path = self._results_files.get(date)
            if path is None:
                raise UserError(
                    f"{self.directory}: no results_{date}.json beside {self._path(task).name}; copy it there, it says "
                    "how the task was asked and scored"
                )
            run = _parse(path.read_bytes(), path)
            self._runs[date] = _require_keys(run, path, task)
        return self._runs[date]

    def _require_one_model(self, dates: Iterable[str]) -> None:
        """lm-eval names the folder by ``pretrained`` alone, so that another dtype's logs lie in the same one."""
        first: tuple[str, dict[str, str]] | None = None
        for date in dates:
            path = self._results_files.get(date)
            run = _parse(path.read_bytes(), path) if path else {}
            with _as_logged(path or self.directory):
                model = _model_of(run.get("config") if isinstance(run, dict) else None)
            if not model:
                continue
            before, known = first = first or (date, model)
            for what in sorted(known.keys() | model.keys()):
                theirs, ours = known.get(what, "not given"), model.get(what, "not given")
                if theirs != ours:
                    raise UserError(
                        f"{self.directory}: logs of several models: {what} is {theirs} in results_{before}.json and "
                        f"{ours} in results_{date}.json; move one model's logs to a folder of their own"
                    )

    def _path(self, task: str) -> Path:
        return self.directory / f"samples_{task}_{self._dates[task]}.jsonl"

    def outcomes(self) -> dict[str, AccuracyOutcome]:
        """Every task's answers. Raises UserError for a log that is cut off, or without hashes."""
        found = {}
        for task in self._dates:
            with _as_logged(self._path(task)):
                found[task] = self._outcome(task)
        return found

    def asked(self, task: str) -> dict[str, str]:
        """What shapes the prompts and scores of a task; of hashes the beginning."""
        run = self._run(task)
        with _as_logged(self._results_files[self._dates[task]]):
            found = {"few-shot": run["n-shot"].get(task), "task version": run["versions"].get(task)}
        found |= {what: run.get(key) for what, key in _ASKED.items()}
        return {what: "none" if value is None else str(value)[:12] for what, value in found.items()}

    def documents(self, task: str) -> TaskDocuments:
        """The questions of a task, as the model got them."""
        output_type = self._output_type(task)
        documents = []
        with _as_logged(self._path(task)):
            for sample, *_ in self._by_document(task):
                arguments = [tuple(each.values()) for each in sample["arguments"].values()]
                target = _target(output_type, sample)
                documents.append(make_document(output_type, {**sample, "arguments": arguments}, target))
        return TaskDocuments(
            task=task, documents_hash=self._documents_hash(task, documents), documents=tuple(documents)
        )

    def groups(self, outcomes: Mapping[str, AccuracyOutcome]) -> tuple[TaskGroup, ...]:
        """A row for each group that lm-eval has a score of, and for each task in none; each question counts once.

        A group's documents are pooled, as lm-eval does where it weighs tasks by their size.
        Tasks with the same documents (GSM8K with and without chain of thought) are a row together, and one each.
        """
        members: dict[str, list[str]] = {}
        for run in {self._dates[task]: self._run(task) for task in outcomes}.values():
            with _as_logged(self.directory):
                scored = run.get("groups") or {}
                members |= {name: inner for name, inner in run.get("group_subtasks", {}).items() if name in scored}
        with _as_logged(self.directory):
            leaves = {name: tuple(task for task in _leaves(name, members) if task in outcomes) for name in members}
        grouped = {task for tasks in leaves.values() for task in tasks}
        alone = [task for task in outcomes if task not in grouped]
        rows = [_row(name, tasks) for name, tasks in leaves.items() if tasks]
        rows += [_row(" + ".join(tasks), tasks, "mean") for tasks in _same_documents(alone, outcomes)]
        return count_once([*rows, *(_row(task, (task,)) for task in alone)])

    def _outcome(self, task: str) -> AccuracyOutcome:
        run, output_type = self._run(task), self._output_type(task)
        samples = self._by_document(task)
        documents = tuple(
            document_outcome(task, output_type, filtered, _target(output_type, filtered[0])) for filtered in samples
        )
        planned = run["n-samples"].get(task, {}).get("effective", len(documents))
        if len(documents) != planned:
            raise BrokenFileError(
                f"{self._path(task)}: {len(documents):,} of {planned:,} documents: the log is cut off, run the "
                "task again"
            )
        require_numbers(f"{self.directory}: task {task}", documents)
        return AccuracyOutcome(
            documents_hash=self._documents_hash(task, documents),
            output_type=output_type,
            metrics=_metrics(run, task, samples[0], documents),
            harness_results=harness_results(run["results"][task]),
            documents=documents,
        )

    def _output_type(self, task: str) -> str:
        return str(self._run(task)["configs"][task]["output_type"])

    def _documents_hash(self, task: str, documents: Any) -> str:
        return hash_json([task, "".join(part for one in documents for part in (one.doc_hash, one.prompt_hash))])

    def _by_document(self, task: str) -> list[list[Sample]]:
        """The samples of each document, one a filter."""
        found: dict[int, list[Sample]] = {}
        for sample in self._samples(task):
            found.setdefault(sample["doc_id"], []).append(sample)
        if not found:
            raise BrokenFileError(f"{self._path(task)}: no samples in it; run the task again")
        return list(found.values())

    def _samples(self, task: str) -> Iterator[Sample]:
        path = self._path(task)
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    sample = from_json(line)
                except ValueError:
                    raise BrokenFileError(
                        f"{path}: line {number} is no whole JSON: the log is cut off, run the task again"
                    ) from None
                keys = sample if isinstance(sample, dict) else {}
                missing = [key for key in (*_NEEDED, *keys.get("metrics", ())) if key not in keys]
                if missing:
                    version = self._run(task).get("lm_eval_version") or "of a version that it doesn't say"
                    raise BrokenFileError(
                        f"{path}: no {missing[0]} in line {number}: written by lm-eval {version}, and pairing needs "
                        "what 0.4.13 logs; run the task again with that"
                    )
                yield sample


def _target(output_type: str, sample: Sample) -> int | str:
    """As of `make_document`; a log has a choice's index as text."""
    target = str(sample.get("target", ""))
    return int(target) if output_type == "multiple_choice" and target.isdecimal() else target


def _samples_folder(directory: Path) -> Path:
    found = {path.parent for path in directory.rglob("samples_*.jsonl") if _SAMPLES.fullmatch(path.name)}
    if directory in found or len(found) == 1:
        return directory if directory in found else found.pop()
    if found:
        names = ", ".join(sorted(str(path) for path in found))
        raise UserError(f"{directory}: logs of several models, name one: {names}")
    raise UserError(
        f"{directory}: no samples_TASK_DATE.jsonl in it; expected the --output_path of lm_eval with --log_samples"
    )


@contextmanager
def _as_logged(path: Path) -> Iterator[None]:
    """What reading raises where a value has another type than lm-eval gives it, as one line that names the file."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:100]
        raise BrokenFileError(
            f"{path}: not as lm-eval 0.4.13 writes it ({type(error).__name__}: {reason}); run lm-eval again"
        ) from None


def _parse(data: bytes, path: Path) -> Any:
    try:
        return from_json(data)
    except ValueError as error:
        raise BrokenFileError(f"{path}: not JSON ({error}); run lm-eval again") from None


def _require_keys(run: Json, path: Path, task: str) -> Json:
    for key in ("results", "configs", "n-shot", "versions", "n-samples", "higher_is_better"):
        if not isinstance(run, dict) or key not in run:
            raise BrokenFileError(f"{path}: no {key!r} in it, which lm-eval 0.4.13 writes; run lm-eval again with that")
    if task not in run["results"] or task not in run["configs"]:
        raise BrokenFileError(f"{path}: no {task} in it; expected the results of the run that logged it")
    return run


def _metrics(
    run: Json, task: str, filtered: list[Sample], documents: tuple[DocumentOutcome, ...]
) -> tuple[MetricInfo, ...]:
    """The metrics that have a value in every document and a known direction, in lm-eval's order."""
    directions = run["higher_is_better"].get(task, {})
    listed = run["configs"][task].get("metric_list") or ()
    aggregations = {entry.get("metric"): entry.get("aggregation", "mean") for entry in listed}
    metrics = [
        MetricInfo(
            name=name,
            filter=sample["filter"],
            aggregation=str(aggregations.get(name, "mean")),
            higher_is_better=bool(directions[name]),
        )
        for sample in filtered
        for name in sample["metrics"]
        if directions.get(name) is not None
    ]
    found = tuple(metric for metric in metrics if all(metric.key in document.metrics for document in documents))
    if not found:
        raise UserError(
            f"{task}: lm-eval scores it over all documents at once, so there is nothing to pair; leave it out"
        )
    return found


def _model_of(config: Any) -> dict[str, str]:
    """What tells one model from another, with the arguments that it was made with; empty where nothing is said."""
    if not isinstance(config, dict):
        return {}
    arguments = config.get("model_args") or {}
    if isinstance(arguments, str):  # of an older lm-eval, as they were typed
        arguments = dict(part.partition("=")[::2] for part in arguments.split(","))
    return {str(what): str(value) for what, value in ({key: config.get(key) for key in _MODEL} | arguments).items()}


def _leaves(name: str, members: Mapping[str, list[str]]) -> Iterator[str]:
    for inner in members[name]:
        if inner in members:
            yield from _leaves(inner, members)
        else:
            yield inner


def _same_documents(tasks: Iterable[str], outcomes: Mapping[str, AccuracyOutcome]) -> list[tuple[str, ...]]:
    """Tasks that ask the same documents, where there are several such."""
    found: dict[tuple[str, ...], list[str]] = {}
    for task in tasks:
        found.setdefault(tuple(sorted(one.doc_hash for one in outcomes[task].documents)), []).append(task)
    return [tuple(same) for same in found.values() if len(same) > 1]


def _row(name: str, tasks: tuple[str, ...], pooling: Literal["documents", "mean"] = "documents") -> TaskGroup:
    return TaskGroup(name=name, title=name, tasks=tasks, pooling=pooling, in_aggregate=True)
