"""The performance scenarios of a study, planned from its settings."""

from pathlib import Path
from typing import Literal

from bitladder.defaults import REQUESTS
from bitladder.errors import UserError
from bitladder.records import Calibration, Scenario, Settings

ENGINE = "eager"


def plan_scenarios(settings: Settings, calibration: Calibration, prompts_hash: str) -> tuple[Scenario, ...]:
    """One Scenario for each of ``settings.scenarios``, with every default filled in."""
    given = settings.requests or {}
    requests = given if isinstance(given, dict) else dict.fromkeys(settings.scenarios, given)

    def plan(name: Literal["batch1", "max-batch"]) -> Scenario:
        return Scenario(
            scenario=name,
            batch_size_cap=1 if name == "batch1" else calibration.max_batch_cap,
            requests=requests.get(name, REQUESTS[name]),
            prompt_tokens=settings.prompt_tokens,
            new_tokens=settings.new_tokens,
            prompts_hash=prompts_hash,
            seed=settings.seed,
            device=calibration.device,
            engine=ENGINE,
            threads=calibration.threads,
            half_width_target=settings.half_width_target,
            time_limit_s=settings.time_limit_s,
            memory_limit_bytes=settings.memory_limit,
        )

    return tuple(plan(name) for name in settings.scenarios)


def require_context(directory: Path, scenario: Scenario, trust_remote_code: bool) -> None:
    """Raise UserError when prompt and new tokens are more than the model has positions."""
    from bitladder.checkpoint.loading import load_config

    config = load_config(directory, trust_remote_code=trust_remote_code)
    positions = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
    if positions is not None and scenario.prompt_tokens + scenario.new_tokens > positions:
        raise UserError(
            f"{directory}: {scenario.prompt_tokens:,} prompt and {scenario.new_tokens:,} new tokens, the model's "
            f"context has {positions:,}; choose fewer --prompt-tokens or --new-tokens"
        )
