"""What is asked of an engine, and what its row of the table says of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from bitladder.records import EngineSettings, LoadPolicy, Scheme

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LaunchFacts = dict[str, str | int | float | bool | None]


@dataclass(frozen=True)
class StepTimes:
    """One run: readings of ``time.perf_counter``, and the tokens, (rows, new_tokens)."""

    started_s: float
    step_end_s: tuple[float, ...]
    """one a step, after the device has finished it; the first step is the prefill"""
    hook_s: float
    """time spent in taking all time stamps, the wait for the device included"""
    tokens: tuple[tuple[int, ...], ...]


class Engine(Protocol):
    """What turns prompts into tokens, with a checkpoint loaded."""

    @property
    def launch(self) -> LaunchFacts:
        """How it was set up, for the record."""

    @property
    def loaded_bytes(self) -> int:
        """Weights, buffers and quantization state in memory, as they are now."""

    def run(self, token_ids: Sequence[Sequence[int]], new_tokens: int) -> StepTimes:
        """Greedy decoding of exactly ``new_tokens`` tokens after rows of equal length."""

    def run_unstamped(self, token_ids: Sequence[Sequence[int]], new_tokens: int) -> float:
        """The same without time stamps: seconds of the whole run, to see what the stamps cost."""


@dataclass(frozen=True)
class EngineRow:
    """One engine: what it can run, what moves its figures, and how it starts."""

    name: str
    title: str
    """in a few words for the user"""
    start: Callable[[Path, LoadPolicy], Engine]
    """Load a checkpoint. Raises as `checkpoint.loading.load_model`"""
    settings: EngineSettings = ()
    """name and value of each that moves its figures: a part of what a measurement is known by"""
    refusal: Callable[[Scheme], str | None] | None = None
    """why it can't run checkpoints of a scheme, or None where it can; without one the scheme's method says it"""
    answering: "Callable[[Path, LoadPolicy], PreTrainedModel] | None" = None
    """loads what the accuracy backends ask; None: it answers no questions"""
    of_model: "Callable[[PreTrainedModel], Engine] | None" = None
    """runs a model that is in memory already; None: only directories, and so nobody knows what it takes beside one"""
