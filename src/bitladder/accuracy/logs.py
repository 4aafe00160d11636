"""lm-eval's own logs of any backend as records: ``samples_TASK_DATE.jsonl`` and ``results_DATE.json`` of a folder.

They are what ``lm_eval run --log_samples --output_path DIR`` writes (0.4.13; the names are older), and nothing but the
files is needed to read them. Each may be compressed, ``.gz``, and have what editors and shells add to a text.
"""

import gzip
import re
import zlib
from codecs import BOM_UTF8
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from bitladder.accuracy.samples import (
    Sample,
    document_outcome,
    harness_results,
    make_document,
    paired_metrics,
    require_numbers,
)
from bitladder.errors import BrokenFileError, UserError
from bitladder.files import parse_json_object
from bitladder.records import AccuracyOutcome, TaskDocuments, TaskGroup, hash_json
from bitladder.tasks.documents import cluster_field, cluster_labels, has_field
from bitladder.tasks.registry import walk
from bitladder.tasks.tasks import count_once

_DATE = r"\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d(?:\.\d+)?"
_SAMPLES = re.compile(rf"samples_(?P<task>.+)_(?P<date>{_DATE})\.jsonl(?:\.gz)?")
_RESULTS = re.compile(rf".*_(?P<date>{_DATE})\.json(?:\.gz)?")
_ASKED = {
    "chat template": "chat_template_sha",
    "system instruction": "system_instruction_sha",
    "multi-turn few-shot": "fewshot_as_multiturn",
}
"""What of a run's results, beside a task's own, shapes its prompts."""
_MODEL = ("model", "model_dtype", "model_num_parameters", "model_revision", "model_sha")
"""What of a run's configuration says which model answered, beside the arguments it was made with."""
_OUTPUT_TYPES = ("multiple_choice", "loglikelihood", "loglikelihood_rolling", "generate_until")
_NEEDED = dict.fromkeys(("doc_hash", "prompt_hash", "doc_id", "doc", "arguments", "resps", "filter", "metrics"))
"""keys of a sample, those that an old lm-eval lacks first"""

Json = dict[str, Any]


class LogFolder:
    """The newest log of each task in a folder, or in the one folder below it that has some.

    ``cluster``: the field of documents that those share which resemble each other, where they have it. Raises UserError
    where there are no logs, or logs of several models.
    """

    def __init__(self, directory: Path, cluster: str | None = None) -> None:
        if not directory.is_dir():
            raise UserError(
                f"{directory}: no such folder; expected a study's, DIR:RUNG of one, or lm-eval's --output_path"
            )
        self.directory = _samples_folder(directory)
        self._cluster = cluster
        self._fields: set[str] = set()
        """of the documents that were read"""
        self._runs: dict[str, Json] = {}
        self.left_out: dict[str, str] = {}
        """tasks that `outcomes` found nothing to pair in, and why"""
        self._paths: dict[tuple[str, str], Path] = {}
        dates: dict[str, list[str]] = {}
        for path in sorted(self.directory.iterdir()):
            match = _SAMPLES.fullmatch(path.name)
            if match and (match["task"], match["date"]) not in self._paths:  # else the same one, compressed
                self._paths[match["task"], match["date"]] = path
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
        paths = sorted(self.directory.iterdir(), reverse=True)  # of the same one compressed the other is taken
        return {match["date"]: path for path in paths if (match := _RESULTS.fullmatch(path.name))}

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
            self._runs[date] = _read_results(path)
        return _require_task(self._runs[date], self._results_files[date], task)

    def _require_one_model(self, dates: Iterable[str]) -> None:
        """lm-eval names the folder by ``pretrained`` alone, so that another dtype's logs lie in the same one."""
        first: tuple[str, dict[str, str]] | None = None
        for date in dates:
            path = self._results_files.get(date)
            model = _model_of(_read_results(path).get("config")) if path else {}
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
        return self._paths[task, self._dates[task]]

    def outcomes(self, names: Collection[str] | None = None) -> dict[str, AccuracyOutcome]:
        """The answers to every task, or to those that ``names`` stand for, tasks or groups, where each is known.

        What can't be paired is in `left_out`. Raises UserError for a log that is cut off, or without hashes, and where
        nothing can be paired.
        """
        found: dict[str, AccuracyOutcome] = {}
        for task in self._named(names) if names else self._dates:
            try:
                outcome = self._outcome(task)
            except BrokenFileError as error:
                others = ", or choose others with --tasks" if len(self._dates) > 1 else ""
                raise BrokenFileError(f"{error}{others}") from None
            if outcome is not None:
                found[task] = outcome
        if not found:
            raise UserError(f"{self.directory}: {next(iter(self.left_out.values()))}; choose others with --tasks")
        if self._cluster is not None and self._cluster not in self._fields:
            known = ", ".join(sorted(self._fields)) or "none"
            raise UserError(f"--cluster {self._cluster}: no document in {self.directory} has that field; found {known}")
        return found

    def _named(self, names: Collection[str]) -> list[str]:
        """The logged tasks behind the names; all where one is neither a task nor a group of theirs."""
        members = self._members(self._dates)
        if not all(name in members or name in self._dates for name in names):
            return list(self._dates)
        wanted = {task for name in names for task in _leaves(name, members)}
        return [task for task in self._dates if task in wanted]

    def _members(self, tasks: Iterable[str]) -> dict[str, list[str]]:
        """The groups that lm-eval has a score of, with what is in them."""
        members: dict[str, list[str]] = {}
        for date, run in {self._dates[task]: self._run(task) for task in tasks}.items():
            with _as_logged(self._results_files[date]):
                scored = run.get("groups") or {}
                found = {str(name): list(map(str, inner)) for name, inner in (run.get("group_subtasks") or {}).items()}
                members |= {name: inner for name, inner in found.items() if name in scored}
        return members

    def asked(self, task: str) -> dict[str, str]:
        """What shapes the prompts and scores of a task; of hashes the beginning."""
        run = self._run(task)
        found: Json = {"few-shot": run["n-shot"].get(task), "task version": run["versions"].get(task)}
        found |= {what: run.get(key) for what, key in _ASKED.items()}
        return {what: "none" if value is None else str(value)[:12] for what, value in found.items()}

    def documents(self, task: str) -> TaskDocuments:
        """The questions of a task, as the model got them."""
        output_type = self._output_type(task)
        documents = []
        for sample, *_ in self._by_document(task):
            with _as_logged(self._path(task)):
                logged = sample["arguments"]  # a list of lists before lm-eval 0.4.3
                given = logged.values() if isinstance(logged, dict) else logged
                arguments = [tuple(each.values() if isinstance(each, dict) else each) for each in given]
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
        members = self._members(outcomes)
        there = self._dates.keys() - self.left_out.keys()
        leaves = {name: tuple(task for task in _leaves(name, members) if task in there) for name in members}
        rows = [_row(name, tasks) for name, tasks in leaves.items() if tasks and outcomes.keys() >= set(tasks)]
        grouped = {task for row in rows for task in row.tasks}
        alone = [task for task in outcomes if task not in grouped]
        rows += [_row(" + ".join(tasks), tasks, "mean") for tasks in _same_documents(alone, outcomes)]
        return count_once([*rows, *(_row(task, (task,)) for task in alone)])

    def _outcome(self, task: str) -> AccuracyOutcome | None:
        run, output_type = self._run(task), self._output_type(task)
        samples = self._by_document(task)
        with _as_logged(self._path(task)):
            docs = [filtered[0]["doc"] for filtered in samples]
            self._fields.update(str(key) for doc in docs if isinstance(doc, dict) for key in doc)
            field = cluster_field(run["configs"][task].get("metadata"))
            if self._cluster is None and field is not None and not has_field(docs, field):
                self.notes += (f"{task}: its metadata names the cluster {field}, a field that no document has",)
            original = int(run["n-samples"].get(task, {}).get("original", len(docs)))
            labels = cluster_labels(task, docs, self._cluster or field, original)
            documents = tuple(
                document_outcome(output_type, filtered, _target(output_type, filtered[0]), label)
                for filtered, label in zip(samples, labels, strict=True)
            )
        with _as_logged(self._results_files[self._dates[task]]):
            planned = int(run["n-samples"].get(task, {}).get("effective", len(documents)))
            listed = run["configs"][task].get("metric_list") or ()
            aggregations = {entry.get("metric"): entry.get("aggregation", "mean") for entry in listed}
            directions = run["higher_is_better"].get(task, {})
            metrics = paired_metrics(samples[0], documents, directions, aggregations)
            aggregates = harness_results(run["results"][task])
        if len(documents) != planned or len({len(filtered) for filtered in samples}) > 1:
            raise BrokenFileError(
                f"{self._path(task)}: {len(documents):,} of {planned:,} documents: the log is cut off, run the "
                "task again"
            )
        require_numbers(f"{self.directory}: task {task}", documents)
        paired = {metric.name for metric in metrics}
        whole = dict.fromkeys(str(name) for sample in samples[0] for name in sample["metrics"] if name not in paired)
        if whole or not metrics:
            reason = f"{task}: {', '.join(whole)}: no score of each document that could be paired"
            self.notes += (f"{reason}, left out",)
            if not metrics:
                self.left_out[task] = reason
                return None
        return AccuracyOutcome(
            documents_hash=self._documents_hash(task, documents),
            output_type=output_type,
            metrics=metrics,
            harness_results=aggregates,
            documents=documents,
        )

    def _output_type(self, task: str) -> str:
        output_type = str(self._run(task)["configs"][task].get("output_type"))
        if output_type not in _OUTPUT_TYPES:
            raise BrokenFileError(
                f"{self._results_files[self._dates[task]]}: {task}: output_type: found {output_type}, expected one of "
                f"{', '.join(_OUTPUT_TYPES)}"
            )
        return output_type

    def _documents_hash(self, task: str, documents: Any) -> str:
        return hash_json([task, "".join(part for one in documents for part in (one.doc_hash, one.prompt_hash))])

    def _by_document(self, task: str) -> list[list[Sample]]:
        """The samples of each document, one a filter."""
        found: dict[int, list[Sample]] = {}
        for sample in self._samples(task):
            filtered = found.setdefault(sample["doc_id"], [])
            if any(one["filter"] == sample["filter"] for one in filtered):
                raise BrokenFileError(
                    f"{self._path(task)}: document {sample['doc_id']} is in it twice: two logs in one; take one away"
                )
            filtered.append(sample)
        if not found:
            raise BrokenFileError(f"{self._path(task)}: no samples in it; run the task again")
        return list(found.values())

    def _samples(self, task: str) -> Iterator[Sample]:
        path = self._path(task)
        for number, line in _lines(path):
            sample = parse_json_object(line, f"{path}, line {number}", "is it cut off? run the task again")
            named = sample.get("metrics", [])
            if not isinstance(named, list) or not isinstance(sample.get("doc_id", 0), int):
                raise BrokenFileError(f"{path}: line {number} is no sample as lm-eval logs it; run the task again")
            missing = [key for key in (*_NEEDED, *map(str, named)) if key not in sample]
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
    inside = [(Path(folder), name) for folder, _, names in walk(directory) for name in names]
    found = {folder for folder, name in inside if _SAMPLES.fullmatch(name)}
    if directory in found or len(found) == 1:
        return directory if directory in found else found.pop()
    if found:
        names = ", ".join(sorted(str(path) for path in found))
        raise UserError(f"{directory}: logs of several models, name one: {names}")
    results = next((name for _, name in inside if _RESULTS.fullmatch(name)), None)
    if results:
        raise UserError(f"{directory}: {results} and no samples_TASK_DATE.jsonl; run lm_eval again with --log_samples")
    raise UserError(
        f"{directory}: no samples_TASK_DATE.jsonl in it; expected the --output_path of lm_eval with --log_samples"
    )


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines with something in them, by number."""
    with _whole(path), gzip.open(path) if path.suffix == ".gz" else path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            text = line.removeprefix(BOM_UTF8) if number == 1 else line
            if text.strip():
                yield number, text


def _read_results(path: Path) -> Json:
    with _whole(path):
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return parse_json_object(data.removeprefix(BOM_UTF8), path, "run lm-eval again")


@contextmanager
def _whole(path: Path) -> Iterator[None]:
    try:
        yield
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise BrokenFileError(f"{path}: cut off, or not compressed by gzip ({error}); copy it again") from None


@contextmanager
def _as_logged(path: Path) -> Iterator[None]:
    """What isn't where lm-eval writes it, or is of another type, as an error of that file's."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BrokenFileError(
            f"{path}: not as lm-eval 0.4.13 writes it ({type(error).__name__}: {reason}); run lm-eval again with that"
        ) from None


def _require_task(run: Json, path: Path, task: str) -> Json:
    for key in ("results", "configs", "n-shot", "versions", "n-samples", "higher_is_better"):
        if not isinstance(run.get(key), dict):
            raise BrokenFileError(f"{path}: no {key!r} in it, which lm-eval 0.4.13 writes; run lm-eval again with that")
    if not all(isinstance(run[key].get(task), dict) for key in ("results", "configs")):
        raise BrokenFileError(f"{path}: no {task} in it; expected the results of the run that logged it")
    return run


def _model_of(config: Any) -> dict[str, str]:
    """What tells one model from another, with the arguments that it was made with; empty where nothing is said."""
    if not isinstance(config, dict):
        return {}
    arguments = config.get("model_args") or {}
    if isinstance(arguments, str):  # of an older lm-eval, as they were typed
        arguments = dict(part.partition("=")[::2] for part in arguments.split(","))
    return {str(what): str(value) for what, value in ({key: config.get(key) for key in _MODEL} | arguments).items()}


def _leaves(name: str, members: Mapping[str, list[str]]) -> Iterator[str]:
    """The tasks of a group, or the task itself, each once."""
    seen, left = {name}, [name]
    while left:
        inner = left.pop()
        if inner not in members:
            yield inner
        new = [one for one in dict.fromkeys(members.get(inner, ())) if one not in seen]
        seen.update(new)
        left += reversed(new)


def _same_documents(tasks: Iterable[str], outcomes: Mapping[str, AccuracyOutcome]) -> list[tuple[str, ...]]:
    """Tasks that ask the same documents, where there are several such."""
    found: dict[tuple[str, ...], list[str]] = {}
    for task in tasks:
        found.setdefault(tuple(sorted(one.doc_hash for one in outcomes[task].documents)), []).append(task)
    return [tuple(same) for same in found.values() if len(same) > 1]


def _row(name: str, tasks: tuple[str, ...], pooling: Literal["documents", "mean"] = "documents") -> TaskGroup:
    return TaskGroup(name=name, title=name, tasks=tasks, pooling=pooling, in_aggregate=True)
