"""The performance scenarios of a study, planned from a workload; and their prompts, equal for every rung."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from bitladder.errors import UserError
from bitladder.perf.engines.engine import EngineRow
from bitladder.records import Calibration, LoadPolicy, Prompts, Scenario, hash_json
from bitladder.records.study import REQUESTS
from bitladder.text.corpus import Corpus

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Workload:
    """What is to be run, and until when."""

    engine: EngineRow
    scenarios: tuple[Literal["batch1", "max-batch"], ...]
    requests: Mapping[Literal["batch1", "max-batch"], int]
    """cap on a scenario's requests; `defaults.REQUESTS` where it has none"""
    prompt_tokens: int
    new_tokens: int
    seed: int
    half_width_target: float
    """a scenario ends early once its rate is known within this share of itself"""
    time_limit_s: float
    memory_limit_bytes: int | None


def plan_scenarios(workload: Workload, calibration: Calibration, prompts_hash: str) -> tuple[Scenario, ...]:
    """One Scenario for each that the workload names, with every default filled in."""
    return tuple(
        Scenario(
            scenario=name,
            batch_size_cap=1 if name == "batch1" else calibration.max_batch_cap,
            requests=workload.requests.get(name, REQUESTS[name]),
            prompt_tokens=workload.prompt_tokens,
            new_tokens=workload.new_tokens,
            prompts_hash=prompts_hash,
            seed=workload.seed,
            device=calibration.device,
            engine=workload.engine.name,
            engine_settings=workload.engine.settings,
            threads=calibration.threads,
            half_width_target=workload.half_width_target,
            time_limit_s=workload.time_limit_s,
            memory_limit_bytes=workload.memory_limit_bytes,
        )
        for name in workload.scenarios
    )


def require_context(directory: Path, scenario: Scenario, policy: LoadPolicy) -> None:
    """Raise UserError when prompt and new tokens are more than the model has positions."""
    from bitladder.checkpoint.loading import load_config

    config = load_config(directory, policy)
    positions = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
    if positions is not None and scenario.prompt_tokens + scenario.new_tokens > positions:
        raise UserError(
            f"{directory}: {scenario.prompt_tokens:,} prompt and {scenario.new_tokens:,} new tokens, the model's "
            f"context has {positions:,}; choose fewer --prompt-tokens or --new-tokens"
        )


def cut_prompts(tokenizer: "PreTrainedTokenizerBase", prompt_tokens: int, corpus: Corpus) -> Prompts:
    """Non-overlapping windows of ``prompt_tokens`` tokens of the joined documents.

    The text is tokenized once, without special tokens, as is usual for perplexity. Raises UserError for a text too
    short for one window.
    """
    token_ids: Sequence[int] = tokenizer(corpus.text, add_special_tokens=False, verbose=False)["input_ids"]
    windows = cut_windows(token_ids, prompt_tokens)
    if not windows:
        raise UserError(
            f"{corpus.origin}: {len(token_ids):,} tokens, {prompt_tokens:,} needed; choose a smaller --prompt-tokens"
        )
    return Prompts(token_ids=windows, prompts_hash=hash_json(windows), origin=corpus.origin)


def cut_windows(token_ids: Sequence[int], window_tokens: int) -> tuple[tuple[int, ...], ...]:
    """Non-overlapping windows, (windows, window_tokens); the rest at the end is left out."""
    whole = len(token_ids) // window_tokens
    return tuple(tuple(token_ids[i * window_tokens : (i + 1) * window_tokens]) for i in range(whole))
