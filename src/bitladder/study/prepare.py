"""Everything the plan needs: the source, this machine's calibration, the tasks, the prompts."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bitladder.environment import describe_machine
from bitladder.errors import UserError
from bitladder.records import AccuracyTask, Calibration, Item, Prompts, Scenario, Settings, StudyRecord, TaskGroup
from bitladder.store import MergedStore, Store
from bitladder.study.added import Added, find_added, require_same_prompts
from bitladder.study.calibration import calibrate, find_device
from bitladder.study.plan import plan_study
from bitladder.study.progress import StudyProgress

BUILTIN = "builtin:"


@dataclass(frozen=True)
class Prepared:
    """A study to be run. ``prompts`` is None where the store has them, or no performance is planned."""

    study: StudyRecord
    prompts: Prompts | None
    added: dict[str, Path]
    """where each ready checkpoint lies"""


def prepare(settings: Settings, store: Store, progress: StudyProgress | None = None) -> Prepared:
    """Resolve and plan. With ``only``, the other half of a study that is already there stays in the plan.

    Raises UserError for anything that the user has to put right first.
    """
    from bitladder.checkpoint.audit import require_sound
    from bitladder.models.source import resolve_model

    if MergedStore(store.directory).read() is not None:
        raise UserError(f"{store.directory}: holds merged studies, which nothing is added to; name another --out")
    progress = progress or StudyProgress()
    stored = store.read_study() if store.has_study() else None
    progress.preparing(f"finding {settings.model}")
    model = resolve_model(settings.model, settings.revision)
    kept = stored if stored is not None and stored.source.content_hash == model.source.content_hash else None
    if kept is None:  # else the same bytes were found sound when the study began
        require_sound(model.directory, trust_remote_code=settings.trust_remote_code)
    if model.source.speed_only:
        settings = _without_accuracy(settings)
    added = _added(settings, model.directory)
    progress.preparing("timing a layer of each rung on this machine")
    calibration = calibrate(settings, model.directory, kept.calibration if kept else None)

    progress.preparing("reading tasks and prompts")
    suite, groups, tasks = _accuracy(settings, calibration, kept)
    scenarios, prompts = _scenarios(settings, calibration, model.directory, kept, store)
    require_same_prompts(settings, model.directory, added, _texts(settings, (*tasks, *scenarios)))
    study = plan_study(
        settings=settings,
        suite=suite,
        source=model.source,
        calibration=calibration,
        groups=groups,
        tasks=tasks,
        scenarios=scenarios,
        added={name: one.source for name, one in added.items()},
    )
    if study.baseline not in study.rungs:
        names = ",".join((study.baseline, *settings.rungs))
        progress.warn(
            f"without {study.baseline} among the rungs there is no drop and no speed-up, only plain figures; "
            f"add it, as --rungs {names}"
        )
    return Prepared(study, prompts, {name: one.directory for name, one in added.items()})


def _added(settings: Settings, baseline: Path) -> dict[str, Added]:
    if not settings.add:
        return {}
    return find_added(settings, baseline, find_device(settings, describe_machine(), baseline))


def _texts(settings: Settings, items: Iterable[Item]) -> Iterator[str]:
    """What the study puts to a model: every accuracy prompt, and the lines that performance prompts are cut from."""
    from bitladder.accuracy.texts import accuracy_texts
    from bitladder.perf.prompts import read_text

    items = tuple(items)
    if any(isinstance(item, Scenario) for item in items):
        yield read_text(settings.datasets, settings.model.startswith(BUILTIN))[0]
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
    settings: Settings, calibration: Calibration, kept: StudyRecord | None
) -> tuple[str, tuple[TaskGroup, ...], tuple[AccuracyTask, ...]]:
    default = "builtin" if settings.model.startswith(BUILTIN) else "paper"
    suite = "custom" if settings.tasks else settings.suite or default
    if settings.only == "performance":
        if kept is None:
            return suite, (), ()
        return kept.suite, kept.groups, tuple(item for item in kept.items if isinstance(item, AccuracyTask))
    from bitladder.accuracy.tasks import resolve_tasks

    resolved = resolve_tasks(settings, suite=suite, device=calibration.device)
    return suite, resolved.groups, resolved.items


def _scenarios(
    settings: Settings, calibration: Calibration, directory: Path, kept: StudyRecord | None, store: Store
) -> tuple[tuple[Scenario, ...], Prompts | None]:
    stored = tuple(item for item in kept.items if isinstance(item, Scenario)) if kept else ()
    if settings.only == "accuracy":
        return stored, None
    from bitladder.perf.scenarios import plan_scenarios

    if kept and stored and store.has_prompts(stored[0].prompts_hash) and _same_prose(settings, calibration, kept):
        return plan_scenarios(settings, calibration, stored[0].prompts_hash), None
    from bitladder.checkpoint.loading import load_tokenizer
    from bitladder.perf.prompts import load_prompts

    prompts = load_prompts(
        load_tokenizer(directory, trust_remote_code=settings.trust_remote_code),
        settings.prompt_tokens,
        datasets=settings.datasets,
        builtin=settings.model.startswith(BUILTIN),
    )
    return plan_scenarios(settings, calibration, prompts.prompts_hash), prompts


def _same_prose(settings: Settings, calibration: Calibration, kept: StudyRecord) -> bool:
    """Whether the prompts are bound to be those of the stored plan: packaged prose, cut by the same libraries."""
    packaged = settings.datasets is None and settings.model.startswith(BUILTIN)
    same = (kept.settings.datasets, kept.settings.prompt_tokens) == (None, settings.prompt_tokens)
    return packaged and same and kept.calibration.machine == calibration.machine
