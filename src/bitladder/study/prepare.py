"""Everything the plan needs: the source, ready checkpoints, this machine's calibration, the tasks, the prompts."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from bitladder.accuracy.rescoring import plan_rescorings
from bitladder.checkpoint.architecture import require_format, require_same_network
from bitladder.checkpoint.loading import (
    load_tokenizer,
)
from bitladder.checkpoint.manifest import probe_texts, require_same_ends, require_same_tokens, same_rules
from bitladder.errors import UserError
from bitladder.machine.host import describe_machine
from bitladder.methods import BASELINE, find_rung
from bitladder.models.source import ResolvedModel, resolve_model
from bitladder.perf.engines import require_runs
from bitladder.records import (
    AccuracyTask,
    Calibration,
    Divergence,
    Item,
    LoadPolicy,
    Prompts,
    Rescoring,
    Scenario,
    Settings,
    Source,
    StudyRecord,
)
from bitladder.records.study import DIVERGENCE_WINDOW_TOKENS
from bitladder.results import same_model
from bitladder.results.store import MergedStore, Store
from bitladder.study.calibration import calibrate, find_device, time_rungs, untimed_rungs
from bitladder.study.messages import StudyProgress
from bitladder.study.plan import too_few_questions
from bitladder.study.resolved import BUILTIN, Resolved, require_sense, require_texts, resolve
from bitladder.tasks.tasks import TaskSet, resolve_tasks
from bitladder.text.corpus import read_corpus


@dataclass(frozen=True)
class Added:
    """A checkpoint that may be measured beside the baseline."""

    source: Source
    directory: Path
    same_rules: bool
    """whether its tokenizer is the baseline's, so that no prompt needs to be tried"""


def find_added(
    sources: Mapping[str, str],
    baseline: Path,
    policy: LoadPolicy,
    *,
    chat_template: bool = False,
    outline: Path | None = None,
) -> dict[str, Added]:
    """The checkpoints by name, in order; ``outline`` as `resolve_model` takes it.

    Raises UserError, naming the checkpoint, for one that isn't there, has no SafeTensors, is another network than the
    model in ``baseline``, tokenizes the probes in another way, or has a format that can't be loaded on the policy's
    device, and where texts are to be in a chat template that isn't the baseline's.
    """
    found = {}
    for name, source in sources.items():
        with _naming(name):
            model = resolve_model(source, outline=outline)
            require_same_network(baseline, model.directory, policy)
            require_format(model.directory, policy.device)
            ours, theirs = (load_tokenizer(place, policy) for place in (baseline, model.directory))
            same = same_rules(ours, theirs)
            if not same:
                require_same_tokens(ours, theirs, probe_texts())
            require_same_ends(ours, theirs)
            if chat_template and ours.chat_template != theirs.chat_template:
                raise UserError(
                    "another chat template than the baseline's; leave --chat-template out, or give it the same"
                )
            found[name] = Added(model.source, model.directory.absolute(), same)
    return found


def require_same_prompts(baseline: Path, added: Mapping[str, Added], texts: Iterable[str], policy: LoadPolicy) -> None:
    """Raise UserError where a checkpoint gives other token ids than the baseline on a text of the study.

    ``texts`` are read only where a tokenizer isn't the baseline's own.
    """
    others = {name: one for name, one in added.items() if not one.same_rules}
    if not others:
        return
    distinct = list(dict.fromkeys(texts))
    for name, one in others.items():
        with _naming(name):
            ours, theirs = (load_tokenizer(place, policy) for place in (baseline, one.directory))
            require_same_tokens(ours, theirs, distinct)


@contextmanager
def _naming(name: str) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        raise UserError(f"--add {name}: {error}") from None


AnyItem = TypeVar("AnyItem", AccuracyTask, Rescoring, Scenario, Divergence)


@dataclass(frozen=True)
class Prepared:
    """A study to be run. ``prompts``: those that the store has not yet."""

    study: StudyRecord
    model: ResolvedModel
    prompts: tuple[Prompts, ...]
    added: dict[str, Path]
    """where each ready checkpoint lies"""
    wanted: Resolved


def prepare(
    settings: Settings, store: Store, progress: StudyProgress | None = None, *, outline: Path | None = None
) -> Prepared:
    """Resolve and plan. With ``only``, the other half of a study that is already there stays in the plan.

    ``outline``: a folder for Hub models without their weights, which are not fetched for a plan that isn't run.
    Raises UserError for anything that the user has to put right first.
    """
    if MergedStore(store.directory).read() is not None:
        raise UserError(f"{store.directory}: holds merged studies, which nothing is added to; name another --out")
    progress = progress or StudyProgress()
    settings = _as_can_be_asked(settings)
    stored = store.read_study() if store.has_study() else None
    wanted = resolve(settings)
    require_sense(wanted)
    progress.preparing(f"finding {wanted.recipe.model}")
    model = resolve_model(wanted.recipe.model, wanted.recipe.revision, outline=outline)
    if stored is not None:
        _require_same_model(stored.source, model.source, store.directory)
    kept = stored if stored is not None and stored.source.content_hash == model.source.content_hash else None
    _require_sound(wanted, model, kept, progress)
    added = _added(wanted, model.directory, outline)
    calibration = calibrate(wanted.device, model.directory, kept.calibration if kept else None, wanted.policy)
    progress.preparing("reading tasks and prompts")
    tasks = _accuracy(wanted, calibration, kept, progress)
    scenarios, prompts = _scenarios(wanted, calibration, model.directory, kept, store)
    divergences, windows = _divergence(wanted, calibration, model.directory, kept, store)
    items: tuple[Item, ...] = (*divergences, *tasks.items, *_rescorings(wanted, tasks, kept), *scenarios)  # cheap first
    require_same_prompts(model.directory, added, _texts(wanted, items), wanted.policy)
    untimed = untimed_rungs(calibration, wanted.rungs)
    if untimed:  # last: what is wrong is told before
        progress.preparing("timing a layer of each rung on this machine")
        calibration = time_rungs(calibration, untimed, model.directory, wanted.policy)
    study = StudyRecord(
        settings=_with_margin(settings, kept),
        suite=tasks.suite,
        baseline=BASELINE,
        source=model.source,
        calibration=calibration,
        groups=tasks.groups,
        items=items,
        added={name: one.source for name, one in added.items()},
    )
    new = tuple(filter(None, (prompts, windows)))
    _tell_limits(wanted, study, progress, is_new=kept is None, has_prompts=bool(new))
    return Prepared(study, model, new, {name: one.directory for name, one in added.items()}, wanted)


def _as_can_be_asked(settings: Settings) -> Settings:
    """Without accuracy, for a model whose answers mean nothing. Raises UserError where it is asked for."""
    from bitladder.models.builtin import find_builtin

    if not settings.model.startswith(BUILTIN) or not find_builtin(settings.model).speed_only:
        return settings
    asked = "--only accuracy" if settings.only == "accuracy" else "--tasks" if settings.tasks else "--suite"
    if settings.only == "accuracy" or settings.tasks or settings.suite:
        raise UserError(
            f"{settings.model}: found {asked}, but its weights are random and its answers mean nothing; "
            "leave it out, or choose a trained model"
        )
    return settings.model_copy(update={"only": "performance"})


def _with_margin(settings: Settings, kept: StudyRecord | None) -> Settings:
    """With what the accuracy half that stays is judged by, and stops at."""
    if kept is None or settings.only != "performance" or settings.max_drop is not None:
        return settings
    return settings.model_copy(update={"max_drop": kept.settings.max_drop})


def _require_same_model(stored: Source, found: Source, out: Path) -> None:
    """Raise UserError where the folder's study is of another model, or of this one while it had other files."""
    if not same_model(stored, found):
        of_hub = stored.kind == found.kind == "hub" and stored.model == found.model
        instead = f", or go on with --revision {stored.revision}" if of_hub else ""
        raise UserError(f"{out}: holds a study of {stored.title}, found {found.title}; name another --out{instead}")


def _require_sound(wanted: Resolved, model: ResolvedModel, kept: StudyRecord | None, progress: StudyProgress) -> None:
    """Raise UserError for a model that can't be studied as is wanted; tell which rungs can't be made of it."""
    from bitladder.auditing import require_sound
    from bitladder.quantization import require_unquantized

    require_unquantized(model)
    if kept is None:  # else the same bytes were found sound when the study began
        if model.has_weights:
            require_sound(model.directory, wanted.policy)
            _tell_ranges(wanted.rungs, model.directory, progress)
        else:
            progress.warn(f"{wanted.recipe.model}: its weights were not fetched, and are checked when the study begins")
        _tell_partial(wanted, model, progress)
    if kept is None or wanted.tasks.chat_template != kept.settings.chat_template:
        require_texts(wanted, model.directory)


def _tell_partial(wanted: Resolved, model: ResolvedModel, progress: StudyProgress) -> None:
    """Which rungs won't be made, since their method leaves too many weights as they are."""
    from bitladder.checkpoint.expected import expect, require_whole

    for name in wanted.rungs:
        row = find_rung(name)
        if not row.method.quantizes:
            continue
        expected = expect(model.directory, row.scheme, wanted.policy)
        try:
            require_whole(f"{name} is left out", row, expected, allow_partial=wanted.recipe.allow_partial)
        except UserError as error:
            progress.warn(str(error))


def _tell_ranges(rungs: Iterable[str], directory: Path, progress: StudyProgress) -> None:
    """Which rungs can't hold the model's weights, before the others' hours; each ends as what it is."""
    from bitladder.checkpoint.weights import beyond_range, vanishing

    for name in rungs:
        scheme = find_rung(name).scheme
        if reason := beyond_range(directory, scheme):
            progress.warn(f"{name} can't be made and will be left out: {reason}")
        elif vanished := vanishing(directory, scheme):
            progress.warn(f"{name}: {vanished}")


def _added(wanted: Resolved, baseline: Path, outline: Path | None) -> dict[str, Added]:
    if not wanted.add:
        return {}
    from bitladder.checkpoint.config import read_config
    from bitladder.checkpoint.scheme import found_scheme
    from bitladder.checkpoint.tensors import read_tensors

    device = find_device(wanted.device, describe_machine(), baseline, wanted.policy)
    policy = wanted.policy.model_copy(update={"device": device})
    added = find_added(wanted.add, baseline, policy, chat_template=wanted.tasks.chat_template, outline=outline)
    places = {name: one.directory for name, one in added.items()}
    schemes = {name: found_scheme(read_config(place), read_tensors(place)) for name, place in places.items()}
    require_runs(wanted.engine, schemes, with_questions=False)
    return added


def _texts(wanted: Resolved, items: Iterable[Item]) -> Iterator[str]:
    """What the study puts to a model: every accuracy prompt, and the texts that the others are cut from."""
    from bitladder.tasks.tasks import accuracy_texts

    items = tuple(items)
    if any(isinstance(item, Scenario) for item in items):
        yield read_corpus(*wanted.text).text
    if any(isinstance(item, Divergence) for item in items):
        yield from read_corpus(*wanted.text).documents.values()
    yield from accuracy_texts(wanted.tasks.sources, (item for item in items if isinstance(item, AccuracyTask)))


def _stored(kept: StudyRecord | None, kind: type[AnyItem]) -> tuple[AnyItem, ...]:
    """What the stored plan has of one kind."""
    return tuple(item for item in kept.items if isinstance(item, kind)) if kept else ()


def _accuracy(wanted: Resolved, calibration: Calibration, kept: StudyRecord | None, progress: StudyProgress) -> TaskSet:
    if not wanted.asks:
        suite, groups = (kept.suite, kept.groups) if kept else (wanted.tasks.suite, ())
        return TaskSet(suite, groups, _stored(kept, AccuracyTask), {})
    resolved = resolve_tasks(wanted.tasks, calibration.device)
    for remark in resolved.remarks:
        progress.warn(remark)
    return resolved


def _rescorings(wanted: Resolved, tasks: TaskSet, kept: StudyRecord | None) -> tuple[Rescoring, ...]:
    if not wanted.asks:
        return _stored(kept, Rescoring)
    if not wanted.tasks.batch_dependence:
        return ()
    return plan_rescorings(wanted.tasks.sources, tasks.groups, tasks.items)


def _scenarios(
    wanted: Resolved, calibration: Calibration, directory: Path, kept: StudyRecord | None, store: Store
) -> tuple[tuple[Scenario, ...], Prompts | None]:
    """With the prompts that they run, where the store has not those already. Raises UserError for a context that is
    too short for them."""
    stored, workload = _stored(kept, Scenario), wanted.workload
    if not wanted.runs:
        return stored, None
    from bitladder.perf.scenarios import cut_prompts, plan_scenarios, require_context

    prompts = None
    if (
        kept
        and stored
        and store.has_prompts(stored[0].prompts_hash)
        and _same_prose(wanted, calibration, kept)
        and kept.settings.prompt_tokens == workload.prompt_tokens
    ):
        found = plan_scenarios(workload, calibration, stored[0].prompts_hash)
    else:
        tokenizer = load_tokenizer(directory, wanted.policy)
        prompts = cut_prompts(tokenizer, workload.prompt_tokens, read_corpus(*wanted.text))
        found = plan_scenarios(workload, calibration, prompts.prompts_hash)
    for scenario in found:
        if scenario not in stored:
            require_context(directory, scenario, wanted.policy)
    return found, prompts


def _divergence(
    wanted: Resolved, calibration: Calibration, directory: Path, kept: StudyRecord | None, store: Store
) -> tuple[tuple[Divergence, ...], Prompts | None]:
    """None where it is turned off, accuracy is not measured, or there is nothing to hold against a baseline."""
    stored = _stored(kept, Divergence)
    count = wanted.divergence_windows
    if count is None or BASELINE not in wanted.all_rungs or len(wanted.all_rungs) < 2:
        return (), None
    if not wanted.asks:
        return stored, None
    if (
        kept
        and stored
        and store.has_prompts(stored[0].texts_hash)
        and _same_prose(wanted, calibration, kept)
        and kept.settings.divergence_windows == count
    ):
        return (stored[0].model_copy(update={"device": calibration.device}),), None
    from bitladder.accuracy.divergence import cut_documents

    tokenizer = load_tokenizer(directory, wanted.policy)
    windows = cut_documents(tokenizer, read_corpus(*wanted.text), count, DIVERGENCE_WINDOW_TOKENS)
    item = Divergence(
        baseline_hash=None,
        texts_hash=windows.prompts_hash,
        windows=len(windows.token_ids),
        window_tokens=DIVERGENCE_WINDOW_TOKENS,
        device=calibration.device,
    )
    return (item,), None if store.has_prompts(windows.prompts_hash) else windows


def _same_prose(wanted: Resolved, calibration: Calibration, kept: StudyRecord) -> bool:
    """Whether the texts are those of the stored plan: without a mirror, cut by the same libraries. Those that it was
    made with stay, whether or not the Hub can be reached by now."""
    mirror, builtin = wanted.text
    without_mirror = mirror is kept.settings.datasets is None
    alike = builtin == kept.settings.model.startswith(BUILTIN)
    return without_mirror and alike and kept.calibration.machine == calibration.machine


def _tell_limits(
    wanted: Resolved, study: StudyRecord, progress: StudyProgress, *, is_new: bool, has_prompts: bool
) -> None:
    """What the plan can't give."""
    if is_new and (too_few := too_few_questions(study, wanted.tasks.sources)):
        progress.warn(too_few)
    if study.baseline not in study.rungs:
        names = ",".join((study.baseline, *wanted.rungs))
        progress.warn(
            f"without {study.baseline} among the rungs there is no drop and no speed-up, only plain figures; "
            f"add it, as --rungs {names}"
        )
    if has_prompts and wanted.text[0] is None and (instead := read_corpus(*wanted.text).instead):
        progress.warn(f"prompts are of the built-in prose: {instead}; --datasets takes a mirror that has it")
