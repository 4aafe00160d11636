"""The flags of ``study``, in the order of its help."""

from pathlib import Path
from typing import Annotated

import typer

from bitladder import defaults
from bitladder.units import format_left


def _default(value: object) -> str:
    return f"(default: {value})"


Model = Annotated[
    str | None, typer.Argument(help="Hub id, directory, or builtin:smollm2-135m. May stand in --config instead.")
]
Out = Annotated[
    Path | None,
    typer.Option(help=f"Folder of the results. An interrupted study goes on there. {_default(defaults.OUT)}"),
]
Config = Annotated[
    Path | None, typer.Option(help="study.yaml: keys are these flags' names, such as prompt-tokens; flags win.")
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub model.")]
Rungs = Annotated[
    str | None, typer.Option(help=f"Comma-separated rungs of the ladder. {_default(','.join(defaults.RUNGS))}")
]
Add = Annotated[
    list[str] | None,
    typer.Option(
        metavar="<str>",
        help="NAME=SOURCE: a ready checkpoint, Hub id or directory, to measure beside the rungs. May be repeated.",
    ),
]
Only = Annotated[str | None, typer.Option(help="accuracy or performance.")]
Suite = Annotated[
    str | None, typer.Option(help="paper or builtin. (default: builtin for a built-in model, else paper)")
]
Tasks = Annotated[
    str | None, typer.Option(help="Comma-separated lm-eval tasks, groups or YAML folders instead of a suite.")
]
Datasets = Annotated[Path | None, typer.Option(help="Mirror of data sets in Hub layout, read offline.")]
Limit = Annotated[int | None, typer.Option(help="Questions a task.")]
Limits = Annotated[str | None, typer.Option(help="Questions of single tasks, such as gsm8k_cot=2,arc_easy=50.")]
NumFewshot = Annotated[int | None, typer.Option(help="Examples a prompt; by default as each task says.")]
BatchSize = Annotated[
    int | None,
    typer.Option(help=f"Rows of an accuracy batch of the backend hf. {_default(defaults.ACCURACY_BATCH_SIZE)}"),
]
Backend = Annotated[
    str | None,
    typer.Option(
        help="Who asks the questions: bitladder (ours, faster) or hf (lm-eval's own). "
        f"{_default(defaults.ACCURACY_BACKEND)}"
    ),
]
TokenBudget = Annotated[
    int | None,
    typer.Option(
        help="Tokens a forward of the backend bitladder. "
        f"{_default('{cpu}, on a GPU {cuda}'.format(**defaults.TOKEN_BUDGET))}"
    ),
]
ChatTemplate = Annotated[bool | None, typer.Option("--chat-template", help="Apply the chat template.")]
Divergence = Annotated[
    bool | None,
    typer.Option(
        "--divergence/--no-divergence",
        help="Measure the divergence from the baseline, or leave it out; it takes seconds a rung. (default: measure)",
    ),
]
DivergenceWindows = Annotated[
    int | None,
    typer.Option(
        help=f"Windows of {defaults.DIVERGENCE_WINDOW_TOKENS} tokens that it is measured on. "
        f"{_default(defaults.DIVERGENCE_WINDOWS)}"
    ),
]
BatchDependence = Annotated[
    bool | None,
    typer.Option(
        "--batch-dependence",
        help="Score some questions again in other batches, at batch 1 and by cached decoding: how many choices "
        "depend on that? Not with --backend hf.",
    ),
]
UntilDecided = Annotated[
    bool | None,
    typer.Option(
        "--until-decided",
        help="Ask in stages, of each rung only as many questions as its verdict against --max-drop takes.",
    ),
]
Seed = Annotated[int | None, typer.Option(help=f"Seed of everything drawn. {_default(defaults.SEED)}")]
Device = Annotated[
    str | None,
    typer.Option(
        help="auto, cpu, cuda:N, or cuda:N,M to spread each model over cards, as auto does where one is too small. "
        f"{_default(defaults.DEVICE)}"
    ),
]
Scenarios = Annotated[str | None, typer.Option(help=f"Comma-separated. {_default(','.join(defaults.SCENARIOS))}")]
Requests = Annotated[
    str | None,
    typer.Option(
        help="Cap on a scenario's requests, such as 20 or batch1=20,max-batch=400; the largest batch runs whole, and "
        "three times at least. "
        f"{_default('{batch1}, {max-batch}'.format(**defaults.REQUESTS))}"
    ),
]
PromptTokens = Annotated[int | None, typer.Option(help=f"Tokens of a prompt. {_default(defaults.PROMPT_TOKENS)}")]
NewTokens = Annotated[int | None, typer.Option(help=f"Tokens generated a request. {_default(defaults.NEW_TOKENS)}")]
MaxBatchCap = Annotated[
    int | None,
    typer.Option(
        help=f"Upper end of the search for the largest batch. {_default(f'{defaults.CPU_MAX_BATCH} on a CPU')}"
    ),
]
HalfWidthTarget = Annotated[
    float | None,
    typer.Option(
        help="A scenario ends early once its rate is known within this share of itself. "
        f"{_default(defaults.HALF_WIDTH_TARGET)}"
    ),
]
TimeLimitS = Annotated[
    float | None,
    typer.Option(help=f"A performance measurement ends after so long. {_default(defaults.TIME_LIMIT_S)}"),
]
MemoryLimit = Annotated[
    str | None,
    typer.Option(
        help="Measure performance as if the device, or each of several cards, had no more memory, such as 15GiB."
    ),
]
TimeoutS = Annotated[
    float | None,
    typer.Option(help=f"A worker is killed when a measurement takes longer. {_default(defaults.TIMEOUT_S)}"),
]
AllowPartial = Annotated[
    bool | None,
    typer.Option(
        "--allow-partial",
        help="Take rungs that leave much of the weights as they are, such as a mixture's experts.",
    ),
]
DryRun = Annotated[
    bool | None, typer.Option("--dry-run", help="Print the plan with expected disk, peak memory and time.")
]
Yes = Annotated[
    bool | None,
    typer.Option("--yes", help=f"Go on where a CPU is expected to take over {format_left(defaults.ASKED_FROM_S)}."),
]
JsonOutput = Annotated[bool | None, typer.Option("--json", help="Print results as JSON.")]
