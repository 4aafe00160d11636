"""One model's answers to lm-eval's tasks, from a study or from lm-eval's own logs; and what can't be compared."""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from bitladder.accuracy.logs import LogFolder
from bitladder.errors import UnknownNameError, UserError
from bitladder.records import AccuracyOutcome, AccuracyTask, Document, StudyRecord, TaskDocuments, TaskGroup
from bitladder.results import Results, answering_machines, place_of, same_contents
from bitladder.results.stages import staged_tasks
from bitladder.results.store import MERGE_FILE, MergedStore, Store, load_results
from bitladder.tasks.tasks import count_once


@dataclass(frozen=True)
class Answers:
    """What one model answered, by leaf task, and how it was asked."""

    name: str
    outcomes: dict[str, AccuracyOutcome]
    groups: tuple[TaskGroup, ...]
    """rows of a table, in order; every task is in at least one"""
    asked: Mapping[str, Mapping[str, str]]
    """task -> what shapes its prompts and scores, such as ``few-shot``; only what is known"""
    read_documents: Callable[[str], TaskDocuments]
    """the questions of a task. Raises UserError where they are not kept"""
    notes: tuple[str, ...] = ()
    """what the reader has to know of how they were found"""
    study: StudyRecord | None = None
    """of which these are one rung's"""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """tasks whose answers can't be paired, and why"""

    @property
    def staged(self) -> dict[str, AccuracyTask]:
        """The tasks that are asked in stages, of which a rung may have answered fewer documents than another."""
        return {task.task: task for task in staged_tasks(self.study)} if self.study else {}


def read_answers(source: str, names: Collection[str] | None = None, cluster: str | None = None) -> Answers:
    """The answers in a folder of lm-eval's logs, or of one rung of a study, ``DIR:RUNG``.

    ``names``: tasks and groups that are wanted; the logs of others need not be read. ``cluster``: of logs, the field
    that documents share which resemble each other; a study's records have what its tasks' metadata says.

    Raises UserError for anything else, and for logs that are cut off or of an old lm-eval.
    """
    directory = Path(source)
    if is_study(directory):
        rungs = ", ".join(load_results(directory).study.rungs)
        raise UserError(f"{source}: a study has several rungs ({rungs}); name one as {source}:RUNG")
    folder, colon, rung = source.rpartition(":")
    if colon and not directory.exists() and is_study(Path(folder)):
        if cluster is not None:
            raise UserError(
                f"--cluster is of lm-eval's logs, {source} is a study: name the field in its task's metadata"
            )
        return study_answers(load_results(Path(folder)), rung)
    return log_answers(directory, names, cluster)


def read_all(sources: Sequence[str], names: Collection[str] | None = None, cluster: str | None = None) -> list[Answers]:
    """`read_answers` of each; those of one name are told apart by as much of their paths as it takes."""
    found = [read_answers(source, names, cluster) for source in sources]
    counts = Counter(one.name for one in found)
    paths = [Path(source).resolve().parts for source in sources]
    for depth in range(1, max(map(len, paths)) + 1):
        titles = [
            one.name if counts[one.name] == 1 else "/".join(parts[-depth:])
            for one, parts in zip(found, paths, strict=True)
        ]
        if len(set(titles)) == len(titles):
            return [replace(one, name=title) for one, title in zip(found, titles, strict=True)]
    return found


def read_pair(base: str, rung: str, names: Collection[str] | None = None) -> tuple[Answers, Answers]:
    """The answers of a study's baseline and of one of its rungs, or those in two folders of logs."""
    if not is_study(Path(base)):
        first, second = read_all([base, rung], names)
        return first, second
    results = load_results(Path(base))
    if rung == results.study.baseline:
        raise UserError(f"{rung} is the baseline itself; expected one of the other rungs")
    return study_answers(results, results.study.baseline), study_answers(results, rung)


def is_study(directory: Path) -> bool:
    return any((directory / name).is_file() for name in ("study.json", MERGE_FILE))


def log_answers(directory: Path, names: Collection[str] | None = None, cluster: str | None = None) -> Answers:
    """The answers in lm-eval's logs, named after the folder."""
    folder = LogFolder(directory, cluster)
    outcomes = folder.outcomes(names)
    return Answers(
        name=directory.resolve().name,
        outcomes=outcomes,
        groups=folder.groups(outcomes),
        asked={task: folder.asked(task) for task in outcomes},
        read_documents=folder.documents,
        notes=folder.notes,
        left_out=folder.left_out,
    )


def study_answers(results: Results, rung: str) -> Answers:
    """The answers of one rung of a study; tasks that did not end well are left out.

    Where several machines asked a task, they are of the one that its report compares, for every rung.
    """
    if rung not in results.study.rungs:
        raise UnknownNameError("rung", rung, results.study.rungs)
    if not results.of(rung) and (other := same_contents(results.study, results.rungs).get(rung)):
        raise UserError(f"{results.directory}: {rung} has {other}'s content, so its answers; name {other}")
    outcomes: dict[str, AccuracyOutcome] = {}
    asked: dict[str, dict[str, str]] = {}
    hashes: dict[str, list[str]] = {}
    for record in results.measured:
        item, outcome = record.item, record.outcome
        if record.rung == rung and isinstance(item, AccuracyTask) and isinstance(outcome, AccuracyOutcome):
            hashes.setdefault(item.task, []).append(outcome.documents_hash)
    machines = answering_machines(results, map(place_of, results.records))
    for record in results.of(rung):
        if not isinstance(record.item, AccuracyTask) or machines[record.item.task] != place_of(record):
            continue
        if isinstance(record.outcome, AccuracyOutcome):
            outcomes[record.item.task] = record.outcome
            shots = record.item.num_fewshot
            asked[record.item.task] = {} if shots is None else {"few-shot": str(shots)}
    if not outcomes:
        raise UserError(f"{results.directory}: {rung} has no answers{_how_to_get_them(results, rung)}")

    def read_documents(task: str) -> TaskDocuments:
        merged = MergedStore(results.directory)
        record = merged.read()
        stores = [merged.part(part) for part in record.parts] if record else [Store(results.directory)]
        found: list[Document] = []
        for documents_hash in dict.fromkeys(hashes[task]):
            documents = next(filter(None, (store.read_documents(documents_hash) for store in stores)), None)
            if documents is None:
                raise UserError(f"{results.directory}: no questions of {task} in documents/; run the study again")
            found += documents.documents
        return TaskDocuments(task=task, documents_hash=outcomes[task].documents_hash, documents=tuple(found))

    groups = tuple(group for group in results.study.groups if outcomes.keys() >= set(group.tasks))
    missing = [group.name for group in results.study.groups if group not in groups]
    notes = (f"{rung} has no result of {', '.join(missing)}, left out",) if missing else ()
    return Answers(rung, outcomes, groups, asked, read_documents, notes, results.study)


def _how_to_get_them(results: Results, rung: str) -> str:
    """What is planned now counts: answers to an earlier plan stay on disk, and are said to."""
    if Store(results.directory).has_other_answers(rung):
        return (
            " to its present plan, only to an earlier one, in records/; run the study again to go on, or with its "
            "earlier settings to have those back"
        )
    return "; run the study with accuracy first"


def take_tasks(answers: Answers, names: Collection[str]) -> Answers:
    """Only these tasks and groups. Raises UnknownNameError for one that isn't here."""
    known = {**{task: (task,) for task in answers.outcomes}, **{group.name: group.tasks for group in answers.groups}}
    for name in names:
        if name in answers.left_out:
            raise UserError(f"{answers.left_out[name]}; choose others with --tasks")
        if name not in known:
            raise UnknownNameError("task", name, known, f"in {answers.name}")
    wanted = {task for name in names for task in known[name]}
    # A part of a group counts by itself where the whole is not wanted.
    groups = count_once(
        group.model_copy(update={"in_aggregate": True}) for group in answers.groups if wanted.issuperset(group.tasks)
    )
    named = {task for group in groups for task in group.tasks}
    alone = tuple(
        TaskGroup(name=task, title=task, tasks=(task,), pooling="documents", in_aggregate=True)
        for task in answers.outcomes
        if task in wanted - named
    )
    outcomes = {task: outcome for task, outcome in answers.outcomes.items() if task in wanted}
    return replace(answers, outcomes=outcomes, groups=(*groups, *alone))


def require_comparable(base: Answers, others: Sequence[Answers]) -> None:
    """Raises UserError, naming what differs, unless all answered the baseline's documents under the same prompts."""
    for name, count in Counter(answers.name for answers in (base, *others)).items():
        if count > 1:
            raise UserError(f"{name!r} stands {count} times; expected a baseline and others, each with its own name")
    for other in others:
        staged = base.staged if base.staged == other.staged else {}
        missing = [task for task in base.outcomes if task not in other.outcomes and task not in staged]
        if missing:
            shown = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
            help_text = "run the study again to go on" if other.study else "log the same tasks"
            raise UserError(
                f"{other.name} has no {shown}, which {base.name} has; {help_text}, or choose some that both have"
            )
        for task in base.outcomes:
            if task not in staged:
                _require_same_task(task, base, other)
            elif task in other.outcomes:
                _require_same_task(task, answers_to_both(base, other), answers_to_both(other, base))


def answers_to_both(answers: Answers, other: Answers) -> Answers:
    """Without the documents that another rung of a study wasn't asked, since it was decided: both have one order."""
    if not answers.staged or answers.staged != other.staged:
        return answers
    outcomes = {
        task: outcome.model_copy(update={"documents": outcome.documents[: len(other.outcomes[task].documents)]})
        if task in answers.staged
        else outcome
        for task, outcome in answers.outcomes.items()
        if task in other.outcomes
    }
    return replace(answers, outcomes=outcomes)


def _require_same_task(task: str, base: Answers, other: Answers) -> None:
    ours, theirs = base.asked[task], other.asked[task]
    for what, value in ours.items():
        if theirs.get(what, value) != value:
            raise UserError(
                f"{task}: not the same {what}: {value} in {base.name}, {theirs[what]} in {other.name}; "
                "compare answers to the same prompts"
            )
    metrics, others_metrics = ({one.key for one in set_.outcomes[task].metrics} for set_ in (base, other))
    if metrics != others_metrics:
        raise UserError(
            f"{task}: not the same metrics: {', '.join(sorted(metrics))} in {base.name}, "
            f"{', '.join(sorted(others_metrics))} in {other.name}; compare runs of one version of the task"
        )
    documents, others = (Counter(one.doc_hash for one in set_.outcomes[task].documents) for set_ in (base, other))
    if documents != others:
        raise UserError(
            f"{task}: not the same documents: {(documents - others).total():,} of {documents.total():,} are "
            f"{base.name}'s alone, {(others - documents).total():,} of {others.total():,} {other.name}'s alone; "
            "compare runs with one --limit and data set"
        )
    prompts, other_prompts = (
        Counter((one.doc_hash, one.prompt_hash) for one in set_.outcomes[task].documents) for set_ in (base, other)
    )
    if prompts != other_prompts:
        raise UserError(
            f"{task}: not the same prompts: {(prompts - other_prompts).total():,} of {prompts.total():,} documents "
            f"were put in other words in {other.name} than in {base.name}; compare runs with one few-shot seed, chat "
            "template and task version"
        )
