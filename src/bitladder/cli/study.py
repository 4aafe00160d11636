"""``bitladder study``: quantize, audit, measure, report."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bitladder import defaults
from bitladder.cli.limits import MaxDrop
from bitladder.cli.remote_code import TrustRemoteCodeIfSaid

if TYPE_CHECKING:
    from bitladder.store import Results


def _default(value: object) -> str:
    return f"(default: {value})"


def study_command(
    model: Annotated[
        str | None, typer.Argument(help="Hub id, directory, or builtin:smollm2-135m. May stand in --config instead.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the results. An interrupted study goes on there.")] = Path(
        "study"
    ),
    config: Annotated[Path | None, typer.Option(help="study.yaml: keys are these flags' names.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub model.")] = None,
    rungs: Annotated[
        str | None, typer.Option(help=f"Comma-separated rungs of the ladder. {_default(','.join(defaults.RUNGS))}")
    ] = None,
    add: Annotated[
        list[str] | None,
        typer.Option(
            metavar="<str>",
            help="NAME=SOURCE: a ready checkpoint, Hub id or directory, to measure beside the rungs. May be repeated.",
        ),
    ] = None,
    only: Annotated[str | None, typer.Option(help="accuracy or performance.")] = None,
    suite: Annotated[
        str | None, typer.Option(help="paper or builtin. (default: builtin for a built-in model, else paper)")
    ] = None,
    tasks: Annotated[
        str | None, typer.Option(help="Comma-separated lm-eval tasks, groups or YAML folders instead of a suite.")
    ] = None,
    datasets: Annotated[Path | None, typer.Option(help="Mirror of data sets in Hub layout, read offline.")] = None,
    limit: Annotated[int | None, typer.Option(help="Questions a task.")] = None,
    limits: Annotated[
        str | None, typer.Option(help="Questions of single tasks, such as gsm8k_cot=2,arc_easy=50.")
    ] = None,
    num_fewshot: Annotated[int | None, typer.Option(help="Examples a prompt; by default as each task says.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(help=f"Rows of an accuracy batch. {_default(defaults.ACCURACY_BATCH_SIZE)}")
    ] = None,
    backend: Annotated[
        str | None,
        typer.Option(
            help="Who asks the questions: hf (lm-eval's own) or bitladder (faster). "
            f"{_default(defaults.ACCURACY_BACKEND)}"
        ),
    ] = None,
    token_budget: Annotated[
        int | None,
        typer.Option(
            help="Tokens a forward of the backend bitladder. "
            f"{_default('{cpu}, on a GPU {cuda}'.format(**defaults.TOKEN_BUDGET))}"
        ),
    ] = None,
    chat_template: Annotated[bool | None, typer.Option("--chat-template", help="Apply the chat template.")] = None,
    no_divergence: Annotated[
        bool, typer.Option("--no-divergence", help="Leave out the divergence from the baseline, in seconds a rung.")
    ] = False,
    divergence_windows: Annotated[
        int | None,
        typer.Option(
            help=f"Windows of {defaults.DIVERGENCE_WINDOW_TOKENS} tokens that it is measured on. "
            f"{_default(defaults.DIVERGENCE_WINDOWS)}"
        ),
    ] = None,
    batch_dependence: Annotated[
        bool | None,
        typer.Option(
            "--batch-dependence",
            help="Score some questions again in other batches, at batch 1 and by cached decoding: how many choices "
            "depend on that? Needs --backend bitladder.",
        ),
    ] = None,
    max_drop: MaxDrop = None,
    until_decided: Annotated[
        bool | None,
        typer.Option(
            "--until-decided",
            help="Ask in stages, of each rung only as many questions as its verdict against --max-drop takes.",
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help=f"Seed of everything drawn. {_default(defaults.SEED)}")] = None,
    device: Annotated[
        str | None,
        typer.Option(
            help="auto, cpu, cuda:N, or cuda:N,M to spread each model over cards, as auto does where one is too small. "
            f"{_default(defaults.DEVICE)}"
        ),
    ] = None,
    scenarios: Annotated[
        str | None, typer.Option(help=f"Comma-separated. {_default(','.join(defaults.SCENARIOS))}")
    ] = None,
    requests: Annotated[
        str | None,
        typer.Option(
            help="Cap on a scenario's requests, such as 20 or batch1=20,max-batch=400. "
            f"{_default('{batch1}, {max-batch}'.format(**defaults.REQUESTS))}"
        ),
    ] = None,
    prompt_tokens: Annotated[
        int | None, typer.Option(help=f"Tokens of a prompt. {_default(defaults.PROMPT_TOKENS)}")
    ] = None,
    new_tokens: Annotated[
        int | None, typer.Option(help=f"Tokens generated a request. {_default(defaults.NEW_TOKENS)}")
    ] = None,
    max_batch_cap: Annotated[
        int | None,
        typer.Option(
            help=f"Upper end of the search for the largest batch. {_default(f'{defaults.CPU_MAX_BATCH} on a CPU')}"
        ),
    ] = None,
    time_limit_s: Annotated[
        float | None,
        typer.Option(help=f"A performance measurement ends after so long. {_default(defaults.TIME_LIMIT_S)}"),
    ] = None,
    memory_limit: Annotated[
        str | None,
        typer.Option(
            help="Measure performance as if the device, or each of several cards, had no more memory, such as 15GiB."
        ),
    ] = None,
    timeout_s: Annotated[
        float | None,
        typer.Option(help=f"A worker is killed when a measurement takes longer. {_default(defaults.TIMEOUT_S)}"),
    ] = None,
    trust_remote_code: TrustRemoteCodeIfSaid = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan with expected disk, peak memory and time.")
    ] = False,
    json_output: Annotated[bool, typer.Option("--json", help="Print results as JSON.")] = False,
) -> None:
    """Quantize MODEL to every rung, audit, measure accuracy and performance, and say which rung to deploy."""
    from bitladder.cli.progress import TerminalProgress
    from bitladder.study.settings import load_settings

    flags = {
        "model": model,
        "revision": revision,
        "rungs": rungs,
        "add": _added(add),
        "only": only,
        "suite": suite,
        "tasks": tasks,
        "datasets": str(datasets.absolute()) if datasets else None,
        "limit": limit,
        "limits": None if limits is None else _numbers("--limits", limits, _LIMITS),
        "num_fewshot": num_fewshot,
        "batch_size": batch_size,
        "backend": backend,
        "token_budget": token_budget,
        "chat_template": chat_template,
        "batch_dependence": batch_dependence,
        "max_drop": max_drop,
        "until_decided": until_decided,
        "divergence": False if no_divergence else None,
        "divergence_windows": divergence_windows,
        "seed": seed,
        "device": device,
        "scenarios": scenarios,
        "requests": _numbers("--requests", requests, _REQUESTS) if requests and "=" in requests else requests,
        "prompt_tokens": prompt_tokens,
        "new_tokens": new_tokens,
        "max_batch_cap": max_batch_cap,
        "time_limit_s": time_limit_s,
        "memory_limit": memory_limit,
        "timeout_s": timeout_s,
        "trust_remote_code": trust_remote_code,
    }
    settings = load_settings(config, flags)
    if dry_run:
        from bitladder.cli.dry_run import print_plan

        print_plan(settings, out, json_output)
        return
    from bitladder.study.run import run_study

    with TerminalProgress() as progress:
        results = run_study(settings, out, progress)
    _answer(results, json_output)


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

    pairs = [part.partition("=") for part in text.split(",")]
    if not all(name.strip() and value.strip() for name, _, value in pairs):
        raise UserError(f"{flag}: found {text!r}, expected {expected}")
    return {name.strip(): value.strip() for name, _, value in pairs}


def _answer(results: "Results", json_output: bool) -> None:
    """Write the report and print the answer; exit 1 where a rung or a measurement did not end well."""
    from bitladder.cli.recommend import print_recommendation
    from bitladder.report import ResultsFile, write_report

    written = write_report(results.directory)
    answer = ResultsFile.model_validate_json((results.directory / "report" / "results.json").read_text())
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
