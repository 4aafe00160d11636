"""``bitladder study``: quantize, audit, measure, report."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from bitladder.cli import study_options as options
from bitladder.cli.limits import MaxDrop
from bitladder.cli.remote_code import TrustRemoteCodeIfSaid

if TYPE_CHECKING:
    from bitladder.store import Results


def study_command(
    context: typer.Context,
    model: options.Model = None,
    out: options.Out = Path("study"),
    config: options.Config = None,
    revision: options.Revision = None,
    rungs: options.Rungs = None,
    add: options.Add = None,
    only: options.Only = None,
    suite: options.Suite = None,
    tasks: options.Tasks = None,
    datasets: options.Datasets = None,
    limit: options.Limit = None,
    limits: options.Limits = None,
    num_fewshot: options.NumFewshot = None,
    batch_size: options.BatchSize = None,
    backend: options.Backend = None,
    token_budget: options.TokenBudget = None,
    chat_template: options.ChatTemplate = None,
    no_divergence: options.NoDivergence = False,
    divergence_windows: options.DivergenceWindows = None,
    batch_dependence: options.BatchDependence = None,
    max_drop: MaxDrop = None,
    until_decided: options.UntilDecided = None,
    seed: options.Seed = None,
    device: options.Device = None,
    scenarios: options.Scenarios = None,
    requests: options.Requests = None,
    prompt_tokens: options.PromptTokens = None,
    new_tokens: options.NewTokens = None,
    max_batch_cap: options.MaxBatchCap = None,
    time_limit_s: options.TimeLimitS = None,
    memory_limit: options.MemoryLimit = None,
    timeout_s: options.TimeoutS = None,
    trust_remote_code: TrustRemoteCodeIfSaid = None,
    allow_partial: options.AllowPartial = None,
    dry_run: options.DryRun = False,
    json_output: options.JsonOutput = False,
) -> None:
    """Quantize MODEL to every rung, audit, measure accuracy and performance, and say which rung to deploy."""
    from bitladder.cli.libraries import libraries_on_stderr
    from bitladder.cli.progress import TerminalProgress
    from bitladder.study.settings import load_settings

    settings = load_settings(config, _settings_flags(context.params))
    if dry_run:
        from bitladder.cli.dry_run import print_plan

        print_plan(settings, out, json_output)
        return
    from bitladder.study.run import run_study

    with libraries_on_stderr(), TerminalProgress() as progress:
        results = run_study(settings, out, progress)
    _answer(results, json_output)


def _settings_flags(given: Mapping[str, Any]) -> dict[str, Any]:
    """Of all flags those that study.yaml may hold too, as it would."""
    from bitladder.records import Settings

    flags = {name: value for name, value in given.items() if name in Settings.model_fields}
    datasets, limits, requests = given["datasets"], given["limits"], given["requests"]
    return flags | {
        "add": _added(given["add"]),
        "datasets": str(Path(datasets).absolute()) if datasets else None,  # older Typers give the text
        "limits": None if limits is None else _numbers("--limits", limits, _LIMITS),
        "divergence": False if given["no_divergence"] else None,
        "requests": _numbers("--requests", requests, _REQUESTS) if requests and "=" in requests else requests,
    }


def _added(pairs: list[str] | None) -> dict[str, str] | None:
    from bitladder.errors import UserError

    if not pairs:
        return None
    found: dict[str, str] = {}
    for pair in pairs:
        name, _, source = (part.strip() for part in pair.partition("="))
        if not name or not source:
            raise UserError(f"--add: found {pair!r}, expected NAME=REPO_OR_DIR such as fp8=my-org/my-model-FP8")
        if name in found:
            raise UserError(f"--add: {name!r} stands more than once; give each checkpoint a name of its own")
        found[name] = source
    return found


_LIMITS = "task=number pairs such as gsm8k_cot=2,arc_easy=50"
_REQUESTS = "a number, or scenario=number pairs such as batch1=20,max-batch=400"


def _numbers(flag: str, text: str, expected: str) -> dict[str, str]:
    from bitladder.errors import UserError

    parts = [part.partition("=") for part in text.split(",")]
    pairs = [(name.strip(), value.strip()) for name, _, value in parts]
    if not all(name and value and "=" not in value for name, value in pairs):
        raise UserError(f"{flag}: found {text!r}, expected {expected}")
    repeated = [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]
    if repeated:
        raise UserError(f"{flag}: found {repeated[0]!r} more than once, expected {expected}; give it one number")
    return dict(pairs)


def _answer(results: "Results", json_output: bool) -> None:
    """Write the report and print the answer; exit 1 where a rung or a measurement did not end well."""
    from bitladder.cli.recommend import print_recommendation
    from bitladder.report import ResultsFile, write_report

    written = write_report(results.directory)
    answer = ResultsFile.model_validate_json(
        (results.directory / "report" / "results.json").read_text(encoding="utf-8")
    )
    if json_output:
        typer.echo(answer.model_dump_json(indent=2))
    else:
        print_recommendation(answer.recommendation)
        typer.echo(f"\nreport: {written[0]}")
    failures = [failure for rung in answer.summary.rungs for failure in rung.failures]
    for failure in failures:
        typer.echo(f"not measured: {failure}", err=True)
    if failures or any(rung.status != "ok" for rung in answer.summary.rungs):
        raise typer.Exit(1)
