"""What each room of a study gets of the settings: resolved here, once, before anything is planned.

Whoever comes after takes its own part, and nobody all settings; they go on into the plan's record alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bitladder.accuracy.rescoring import require_planned_batches
from bitladder.checkpoint.loading import require_chat_template, require_generation_config, require_tokenizer
from bitladder.errors import UserError
from bitladder.machine.host import describe_machine
from bitladder.methods import find_rung
from bitladder.perf.engines import DEFAULT, find_engine, require_runs
from bitladder.perf.engines.engine import EngineRow
from bitladder.perf.scenarios import Workload
from bitladder.records import LoadPolicy, Settings, TaskSources
from bitladder.study.calibration import WantedDevice, require_cards
from bitladder.study.messages import Recipe
from bitladder.tasks.tasks import CUSTOM, TaskRequest, require_names

BUILTIN = "builtin:"


@dataclass(frozen=True)
class Resolved:
    """The settings, apart by who uses them."""

    recipe: Recipe
    rungs: tuple[str, ...]
    add: Mapping[str, str]
    """ready checkpoints by name"""
    policy: LoadPolicy
    """for what is read of the model before it is measured, which needs no device"""
    device: WantedDevice
    only: Literal["accuracy", "performance"] | None
    tasks: TaskRequest
    """also where nothing is asked: an earlier plan's tasks have the same sources"""
    workload: Workload
    divergence_windows: int | None
    """None: it is turned off"""
    engine: EngineRow
    text: tuple[str | None, bool]
    """where running text comes from, as `read_corpus` takes it: a mirror, and whether the model is a built-in one"""
    timeout_s: float
    """of one measurement"""

    @property
    def asks(self) -> bool:
        """Whether questions are asked."""
        return self.only != "performance"

    @property
    def runs(self) -> bool:
        """Whether scenarios are run."""
        return self.only != "accuracy"

    @property
    def all_rungs(self) -> tuple[str, ...]:
        """The ladder's, and ready checkpoints."""
        return (*self.rungs, *self.add)


def resolve(settings: Settings) -> Resolved:
    """Every part of the settings, with the defaults that depend on others filled in.

    Raises UserError for what is to be asked where nothing is.
    """
    asking = {"until-decided": settings.until_decided, "batch-dependence": settings.batch_dependence}
    for flag, is_set in asking.items():
        if is_set and settings.only == "performance":
            raise UserError(f"--{flag}: found --only performance, which asks no questions; leave out one of the two")
    builtin = settings.model.startswith(BUILTIN)
    suite = settings.suite or ("builtin" if builtin else "paper")
    engine = find_engine(settings.engine)
    return Resolved(
        recipe=Recipe(model=settings.model, revision=settings.revision, allow_partial=settings.allow_partial),
        rungs=settings.rungs,
        add=settings.add,
        policy=LoadPolicy(trust_remote_code=settings.trust_remote_code),
        device=WantedDevice(
            name=settings.device,
            max_batch_cap=settings.max_batch_cap,
            memory_limit_bytes=settings.memory_limit,
            rungs=settings.rungs,
        ),
        only=settings.only,
        tasks=task_request(settings, CUSTOM if settings.tasks else suite, engine),
        workload=workload(settings, engine),
        divergence_windows=settings.divergence_windows if settings.divergence else None,
        engine=engine,
        text=(settings.datasets, builtin),
        timeout_s=settings.timeout_s,
    )


def task_sources(settings: Settings) -> TaskSources:
    return TaskSources(
        requested=settings.tasks,
        datasets=settings.datasets,
        num_fewshot=settings.num_fewshot,
        seed=settings.seed,
        trust_remote_code=settings.trust_remote_code,
    )


def task_request(settings: Settings, suite: str, engine: EngineRow = DEFAULT) -> TaskRequest:
    return TaskRequest(
        sources=task_sources(settings),
        suite=suite,
        limit=settings.limit,
        limits=settings.limits,
        backend=settings.backend,
        engine=None if engine == DEFAULT else engine.name,
        engine_settings=engine.settings,
        batch_size=settings.batch_size,
        token_budget=settings.token_budget,
        chat_template=settings.chat_template,
        until_decided=settings.until_decided,
        batch_dependence=settings.batch_dependence,
        rungs=(*settings.rungs, *settings.add),
    )


def workload(settings: Settings, engine: EngineRow) -> Workload:
    given = settings.requests or {}
    return Workload(
        engine=engine,
        scenarios=settings.scenarios,
        requests=given if isinstance(given, dict) else dict.fromkeys(settings.scenarios, given),
        prompt_tokens=settings.prompt_tokens,
        new_tokens=settings.new_tokens,
        seed=settings.seed,
        half_width_target=settings.half_width_target,
        time_limit_s=settings.time_limit_s,
        memory_limit_bytes=settings.memory_limit,
    )


def require_sense(wanted: Resolved) -> None:
    """Raise UserError for what is wrong whatever the model is, before one is fetched."""
    for name in wanted.rungs:
        find_rung(name).method.require_packages(f"rung {name}")
    if wanted.asks:
        if wanted.tasks.batch_dependence:
            require_planned_batches(wanted.tasks.backend)
        require_names(wanted.tasks)
    schemes = {name: find_rung(name).scheme for name in wanted.rungs}
    require_runs(wanted.engine, schemes, with_questions=wanted.asks)
    machine, name = describe_machine(), wanted.device.name
    without = name == "auto" and not (machine.gpus or machine.gpus_unknown)
    if name != "cpu" and not without:  # else nothing has to ask torch
        require_cards(name, machine)


def require_texts(wanted: Resolved, directory: Path) -> None:
    """Raise UserError where texts can't be given to the model, or asked of it, as is wanted."""
    require_generation_config(directory)
    require_tokenizer(directory, wanted.policy)
    if wanted.asks and wanted.tasks.chat_template:
        require_chat_template(directory, wanted.policy)
