"""What the engine's time stamps cost: generate with and without them, in turn, on one checkpoint.

python benchmarks/engine_hook.py builtin:smollm2-135m --batch-size 8
"""

import statistics
import time
from typing import Annotated

import typer

from bitladder.units import format_seconds


def main(
    model: Annotated[str, typer.Argument(help="Hub id, directory or builtin:NAME")] = "builtin:smollm2-135m",
    device: str = "cpu",
    batch_size: int = 1,
    prompt_tokens: int = 32,
    new_tokens: int = 16,
    pairs: Annotated[int, typer.Option(min=2, help="runs with and runs without")] = 5,
) -> None:
    """Print a step's time, the stamp's own time, and the paired difference of whole runs."""
    from bitladder.checkpoint.loading import load_tokenizer
    from bitladder.models.source import resolve_model
    from bitladder.perf.engines import find_engine
    from bitladder.perf.scenarios import cut_prompts
    from bitladder.records import LoadPolicy
    from bitladder.text.corpus import read_prose

    directory = resolve_model(model).directory
    prompts = cut_prompts(load_tokenizer(directory), prompt_tokens, read_prose())
    rows = [prompts.row(index) for index in range(batch_size)]
    engine = find_engine(None).start(directory, LoadPolicy(device=device))
    engine.run(rows, new_tokens)  # warm-up

    own_s: list[float] = []
    step_s: list[float] = []
    extra_s: list[float] = []
    for pair in range(pairs):
        # in turn, so that a drift of the machine's speed doesn't fall on one side
        unstamped_s = engine.run_unstamped(rows, new_tokens) if pair % 2 == 0 else None
        started_s = time.perf_counter()
        steps = engine.run(rows, new_tokens)
        stamped_s = time.perf_counter() - started_s
        if unstamped_s is None:
            unstamped_s = engine.run_unstamped(rows, new_tokens)
        step_s.append(unstamped_s / new_tokens)
        own_s.append(steps.hook_s / new_tokens)
        extra_s.append((stamped_s - unstamped_s) / new_tokens)

    step = statistics.median(step_s)
    error = statistics.stdev(extra_s) / pairs**0.5
    typer.echo(f"step without stamps   {format_seconds(step)} (median of {pairs}, prefill shared out)")
    typer.echo(f"stamp's own time      {statistics.median(own_s) * 1e6:.1f} µs, {statistics.median(own_s) / step:.4%}")
    typer.echo(
        f"whole runs' difference {statistics.mean(extra_s) * 1e6:+.0f} ± {error * 1e6:.0f} µs a step "
        f"(mean, standard error of {pairs} pairs), {statistics.mean(extra_s) / step:+.2%}"
    )


if __name__ == "__main__":
    typer.run(main)
