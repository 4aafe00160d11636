"""Everything the plan needs: the source, this machine's calibration, the tasks, the prompts."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bitladder.corpus import Corpus, read_corpus
from bitladder.defaults import DIVERGENCE_WINDOW_TOKENS
from bitladder.environment import describe_machine
from bitladder.errors import UserError
from bitladder.records import (
    AccuracyTask,
    Calibration,
    Divergence,
    Item,
    Prompts,
    Rescoring,
    Scenario,
    Settings,
    Source,
    StudyRecord,
    TaskGroup,
)
from bitladder.results import same_model
from bitladder.rungs import BASELINE, find_rung
from bitladder.store import MergedStore, Store
from bitladder.study.added import Added, find_added, require_same_prompts
from bitladder.study.calibration import calibrate, find_device, require_cards, time_rungs, untimed_rungs
from bitladder.study.plan import plan_study
from bitladder.study.progress import StudyProgress
from bitladder.study.resolution import too_few_questions

if TYPE_CHECKING:
    from bitladder.models.source import ResolvedModel

BUILTIN = "builtin:"


@dataclass(frozen=True)
class Prepared:
    """A study to be run. ``prompts``: those that the store has not yet."""

    study: StudyRecord
    model: "ResolvedModel"
    prompts: tuple[Prompts, ...]
    added: dict[str, Path]
    """where each ready checkpoint lies"""


def prepare(
    settings: Settings, store: Store, progress: StudyProgress | None = None, *, outline: Path | None = None
) -> Prepared:
    """Resolve and plan. With ``only``, the other half of a study that is already there stays in the plan.

    ``outline``: a folder for Hub models without their weights, which are not fetched for a plan that isn't run.
    Raises UserError for anything that the user has to put right first.
    """
    from bitladder.checkpoint.audit import require_sound
    from bitladder.checkpoint.quantize import require_unquantized
    from bitladder.models.builtin import find_builtin
    from bitladder.models.source import resolve_model
    from bitladder.perf.scenarios import require_context

    if MergedStore(store.directory).read() is not None:
        raise UserError(f"{store.directory}: holds merged studies, which nothing is added to; name another --out")
    progress = progress or StudyProgress()
    if settings.model.startswith(BUILTIN) and find_builtin(settings.model).speed_only:
        settings = _without_accuracy(settings)
    _require_sense(settings)
    stored = store.read_study() if store.has_study() else None
    progress.preparing(f"finding {settings.model}")
    model = resolve_model(settings.model, settings.revision, outline=outline)
    if stored is not None:
        _require_same_model(stored.source, model.source, store.directory)
    kept = stored if stored is not None and stored.source.content_hash == model.source.content_hash else None
    require_unquantized(model)
    if kept is None:  # else the same bytes were found sound when the study began
        if model.has_weights:
            require_sound(model.directory, trust_remote_code=settings.trust_remote_code)
            _tell_ranges(settings, model.directory, progress)
        else:
            progress.warn(f"{settings.model}: its weights were not fetched, and are checked when the study begins")
        for line in _partial_rungs(settings, model):
            progress.warn(line)
    if kept is None or settings.chat_template != kept.settings.chat_template:
        _require_texts(settings, model.directory)
    if kept is not None and settings.only == "performance" and settings.max_drop is None:
        # what its accuracy half is judged by, and stops at
        settings = settings.model_copy(update={"max_drop": kept.settings.max_drop})
    added = _added(settings, model.directory, outline)
    calibration = calibrate(settings, model.directory, kept.calibration if kept else None)
    progress.preparing("reading tasks and prompts")
    suite, groups, tasks = _accuracy(settings, calibration, kept, progress)
    scenarios, prompts = _scenarios(settings, calibration, model.directory, kept, store)
    divergence, windows = _divergence(settings, calibration, model.directory, kept, store)
    planned: tuple[Item, ...] = (*tasks, *scenarios, *([divergence] if divergence else []))
    for scenario in scenarios if settings.only != "accuracy" else ():
        if kept is None or scenario not in kept.items:
            require_context(model.directory, scenario, settings.trust_remote_code)
    require_same_prompts(settings, model.directory, added, _texts(settings, planned))
    untimed = untimed_rungs(calibration, settings.rungs)
    if untimed:  # last: what is wrong is told before
        progress.preparing("timing a layer of each rung on this machine")
        calibration = time_rungs(calibration, untimed, model.directory, trust_remote_code=settings.trust_remote_code)
    study = plan_study(
        settings=settings,
        suite=suite,
        source=model.source,
        calibration=calibration,
        groups=groups,
        tasks=tasks,
        scenarios=scenarios,
        divergence=divergence,
        rescorings=_rescorings(settings, groups, tasks, kept),
        added={name: one.source for name, one in added.items()},
    )
    if kept is None and (too_few := too_few_questions(study)):
        progress.warn(too_few)
    if study.baseline not in study.rungs:
        names = ",".join((study.baseline, *settings.rungs))
        progress.warn(
            f"without {study.baseline} among the rungs there is no drop and no speed-up, only plain figures; "
            f"add it, as --rungs {names}"
        )
    new = tuple(filter(None, (prompts, windows)))
    if new and settings.datasets is None and (instead := _corpus(settings).instead):
        progress.warn(f"prompts are of the built-in prose: {instead}; --datasets takes a mirror that has it")
    return Prepared(study, model, new, {name: one.directory for name, one in added.items()})


def _require_same_model(stored: Source, found: Source, out: Path) -> None:
    """Raise UserError where the folder's study is of another model, or of this one while it had other files."""
    if not same_model(stored, found):
        of_hub = stored.kind == found.kind == "hub" and stored.model == found.model
        instead = f", or go on with --revision {stored.revision}" if of_hub else ""
        raise UserError(f"{out}: holds a study of {stored.title}, found {found.title}; name another --out{instead}")


def _partial_rungs(settings: Settings, model: "ResolvedModel") -> Iterator[str]:
    """What there is to say of rungs that won't be made, since their method leaves too many weights as they are."""
    from bitladder.checkpoint.expected import expect, require_whole

    for name in settings.rungs:
        row = find_rung(name)
        if row.scheme.method == "plain":
            continue
        expected = expect(model.directory, row.scheme, trust_remote_code=settings.trust_remote_code)
        try:
            require_whole(f"{name} is left out", row, expected, allow_partial=settings.allow_partial)
        except UserError as error:
            yield str(error)


def _require_texts(settings: Settings, directory: Path) -> None:
    """Raise UserError where texts can't be given to the model, or asked of it, as the settings want."""
    from bitladder.checkpoint.loading import require_chat_template, require_generation_config, require_tokenizer

    require_generation_config(directory)
    require_tokenizer(directory, trust_remote_code=settings.trust_remote_code)
    if settings.chat_template and settings.only != "performance":
        require_chat_template(directory, trust_remote_code=settings.trust_remote_code)


def _tell_ranges(settings: Settings, directory: Path, progress: StudyProgress) -> None:
    """Which rungs can't hold the model's weights, before the others' hours; each ends as what it is."""
    from bitladder.checkpoint.ranges import beyond_range, vanishing

    for name in settings.rungs:
        scheme = find_rung(name).scheme
        if reason := beyond_range(directory, scheme):
            progress.warn(f"{name} can't be made and will be left out: {reason}")
        elif vanished := vanishing(directory, scheme):
            progress.warn(f"{name}: {vanished}")


def _require_sense(settings: Settings) -> None:
    """Raise UserError for what is wrong whatever the model is, before one is fetched."""
    from bitladder.accuracy.rescoring import require_planned_batches
    from bitladder.accuracy.tasks import require_names

    if settings.only != "performance":
        require_planned_batches(settings)
        require_names(settings, _suite(settings))
    else:
        for flag, is_set in (
            ("until-decided", settings.until_decided),
            ("batch-dependence", settings.batch_dependence),
        ):
            if is_set:
                raise UserError(
                    f"--{flag}: found --only performance, which asks no questions; leave out one of the two"
                )
    machine = describe_machine()
    without = settings.device == "auto" and not (machine.gpus or machine.gpus_unknown)
    if settings.device != "cpu" and not without:  # else nothing has to ask torch
        require_cards(settings.device, machine)


def _suite(settings: Settings) -> str:
    default = "builtin" if settings.model.startswith(BUILTIN) else "paper"
    return "custom" if settings.tasks else settings.suite or default


def _added(settings: Settings, baseline: Path, outline: Path | None) -> dict[str, Added]:
    if not settings.add:
        return {}
    return find_added(settings, baseline, find_device(settings, describe_machine(), baseline), outline)


def _texts(settings: Settings, items: Iterable[Item]) -> Iterator[str]:
    """What the study puts to a model: every accuracy prompt, and the texts that the others are cut from."""
    from bitladder.accuracy.texts import accuracy_texts

    items = tuple(items)
    if any(isinstance(item, Scenario) for item in items):
        yield _corpus(settings).text
    if any(isinstance(item, Divergence) for item in items):
        yield from _corpus(settings).documents.values()
    yield from accuracy_texts(settings, (item for item in items if isinstance(item, AccuracyTask)))


def _without_accuracy(settings: Settings) -> Settings:
    asked = "--only accuracy" if settings.only == "accuracy" else "--tasks" if settings.tasks else "--suite"
    if settings.only == "accuracy" or settings.tasks or settings.suite:
        raise UserError(
            f"{settings.model}: found {asked}, but its weights are random and its answers mean nothing; "
            "leave it out, or choose a trained model"
        )
    return settings.model_copy(update={"only": "performance"})


def _accuracy(
    settings: Settings, calibration: Calibration, kept: StudyRecord | None, progress: StudyProgress
) -> tuple[str, tuple[TaskGroup, ...], tuple[AccuracyTask, ...]]:
    suite = _suite(settings)
    if settings.only == "performance":
        if kept is None:
            return suite, (), ()
        return kept.suite, kept.groups, tuple(item for item in kept.items if isinstance(item, AccuracyTask))
    from bitladder.accuracy.tasks import resolve_tasks

    resolved = resolve_tasks(settings, suite=suite, device=calibration.device)
    for remark in resolved.remarks:
        progress.warn(remark)
    return suite, resolved.groups, resolved.items


def _rescorings(
    settings: Settings, groups: tuple[TaskGroup, ...], tasks: tuple[AccuracyTask, ...], kept: StudyRecord | None
) -> tuple[Rescoring, ...]:
    if settings.only == "performance":
        return tuple(item for item in kept.items if isinstance(item, Rescoring)) if kept else ()
    from bitladder.accuracy.rescoring import plan_rescorings

    return plan_rescorings(settings, groups, tasks)


def _scenarios(
    settings: Settings, calibration: Calibration, directory: Path, kept: StudyRecord | None, store: Store
) -> tuple[tuple[Scenario, ...], Prompts | None]:
    stored = tuple(item for item in kept.items if isinstance(item, Scenario)) if kept else ()
    if settings.only == "accuracy":
        return stored, None
    from bitladder.perf.scenarios import plan_scenarios

    if (
        kept
        and stored
        and store.has_prompts(stored[0].prompts_hash)
        and _same_prose(settings, calibration, kept)
        and kept.settings.prompt_tokens == settings.prompt_tokens
    ):
        return plan_scenarios(settings, calibration, stored[0].prompts_hash), None
    from bitladder.checkpoint.loading import load_tokenizer
    from bitladder.perf.prompts import cut_prompts

    prompts = cut_prompts(
        load_tokenizer(directory, trust_remote_code=settings.trust_remote_code),
        settings.prompt_tokens,
        _corpus(settings),
    )
    return plan_scenarios(settings, calibration, prompts.prompts_hash), prompts


def _divergence(
    settings: Settings, calibration: Calibration, directory: Path, kept: StudyRecord | None, store: Store
) -> tuple[Divergence | None, Prompts | None]:
    """None where it is turned off, accuracy is not measured, or there is nothing to hold against a baseline."""
    stored = next((item for item in kept.items if isinstance(item, Divergence)), None) if kept else None
    rungs = (*settings.rungs, *settings.add)
    if not settings.divergence or BASELINE not in rungs or len(rungs) < 2:
        return None, None
    if settings.only == "performance":
        return stored, None
    if (
        kept
        and stored
        and store.has_prompts(stored.texts_hash)
        and _same_prose(settings, calibration, kept)
        and kept.settings.divergence_windows == settings.divergence_windows
    ):
        return stored.model_copy(update={"device": calibration.device}), None
    from bitladder.checkpoint.loading import load_tokenizer
    from bitladder.divergence.windows import cut_documents

    windows = cut_documents(
        load_tokenizer(directory, trust_remote_code=settings.trust_remote_code),
        _corpus(settings),
        settings.divergence_windows,
        DIVERGENCE_WINDOW_TOKENS,
    )
    item = Divergence(
        baseline_hash=None,
        texts_hash=windows.prompts_hash,
        windows=len(windows.token_ids),
        window_tokens=DIVERGENCE_WINDOW_TOKENS,
        device=calibration.device,
    )
    return item, None if store.has_prompts(windows.prompts_hash) else windows


def _corpus(settings: Settings) -> Corpus:
    return read_corpus(settings.datasets, settings.model.startswith(BUILTIN))


def _same_prose(settings: Settings, calibration: Calibration, kept: StudyRecord) -> bool:
    """Whether the texts are those of the stored plan: without a mirror, cut by the same libraries. Those that it was
    made with stay, whether or not the Hub can be reached by now."""
    without_mirror = settings.datasets is kept.settings.datasets is None
    alike = settings.model.startswith(BUILTIN) == kept.settings.model.startswith(BUILTIN)
    return without_mirror and alike and kept.calibration.machine == calibration.machine
