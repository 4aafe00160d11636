"""Imports point one way; measuring and reporting meet only in the store."""

import ast
import subprocess
import sys
from pathlib import Path

from bitladder.report.stamp import _code

PACKAGE = Path(__file__).parents[1] / "src" / "bitladder"
FOUNDATION = {
    "allocator",
    "cgroup",
    "collector",
    "cuda",
    "defaults",
    "devices",
    "driver",
    "errors",
    "units",
    "records",
    "rungs",
    "files",
    "json_files",
    "results",
    "stages",
    "store",
    "environment",
    "main_memory",
    "processors",
    "forkserver",
    "home",
    "hub",
    "hub_kernels",
    "corpus",
    "markdown",
    "wording",
    "printable",
}
CHECKPOINT_FILES = {
    "config",
    "declared",
    "four_bits",
    "generation",
    "kinds",
    "layers",
    "loading",
    "manifest",
    "placement",
    "tensors",
    "values",
}
"""What reads a checkpoint's directory; `models` needs it, and quantizing needs `models`."""
MAY_IMPORT = {
    "foundation": FOUNDATION,
    "checkpoint files": FOUNDATION,
    "models": FOUNDATION | {"checkpoint files"},
    "checkpoint": FOUNDATION | {"checkpoint files", "models"},
    "accuracy": FOUNDATION | {"checkpoint", "checkpoint files", "models"},
    "divergence": FOUNDATION | {"accuracy", "checkpoint", "checkpoint files"},
    "perf": FOUNDATION | {"checkpoint", "checkpoint files"},
    # stats: what decides whether a rung is asked on is what its verdict will be
    "study": FOUNDATION | {"models", "checkpoint", "checkpoint files", "accuracy", "divergence", "perf", "stats"},
    "archive": FOUNDATION,
    "merge": FOUNDATION | {"archive", "checkpoint files"},
    "stats": FOUNDATION,
    "objections": FOUNDATION | {"stats"},
    "tradeoffs": FOUNDATION | {"stats"},
    "recommendation": FOUNDATION | {"stats"},
    "evidence": FOUNDATION | {"stats", "objections", "recommendation"},
    "ranking": FOUNDATION | {"stats", "recommendation"},
    "sentence": FOUNDATION | {"stats", "objections", "recommendation", "evidence", "ranking"},
    "decide": FOUNDATION | {"stats", "objections", "recommendation", "evidence", "tradeoffs", "ranking", "sentence"},
    "report": FOUNDATION | {"stats", "decide", "recommendation"},
    "publish": FOUNDATION | {"models", "checkpoint", "checkpoint files", "stats"},
}
HEAVY = ("torch", "transformers", "lm_eval", "bitsandbytes", "datasets", "accelerate")


def part_of(modules: list[str]) -> str:
    """The part that bitladder's module of this dotted path belongs to."""
    if modules[0] == "checkpoint" and len(modules) > 1 and modules[1] in CHECKPOINT_FILES:
        return "checkpoint files"
    return modules[0]


def imported_parts() -> list[tuple[str, str, Path]]:
    """(importing part, imported part, file) for every import of bitladder within bitladder, nested ones too."""
    found = []
    for path in PACKAGE.rglob("*.py"):
        part = part_of([name.removesuffix(".py") for name in path.relative_to(PACKAGE).parts])
        for node in ast.walk(ast.parse(path.read_text())):
            names: list[str] = []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            found += [(part, part_of(name.split(".")[1:]), path) for name in names if name.startswith("bitladder.")]
    return found


def test_imports_point_one_way() -> None:
    imports = imported_parts()
    assert len(imports) > 50
    for part, imported, path in imports:
        if part in ("cli", "__init__", "__main__") or imported == part:
            continue
        allowed = MAY_IMPORT["foundation" if part in FOUNDATION else part]
        assert imported in allowed, f"{path} imports bitladder.{imported}"


def test_no_heavy_import_at_start() -> None:
    """One process for all: the first line that isn't empty names what imports."""
    modules = ("bitladder.cli.main", "bitladder.store", "bitladder.merge", "bitladder.decide", "bitladder.report")
    code = "import sys\n" + "".join(
        f"import {module}\nprint({module!r}, [name for name in {HEAVY!r} if name in sys.modules])\n"
        for module in modules
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert ran.stdout.splitlines() == [f"{module} []" for module in modules]


def test_a_report_is_made_anew_where_anything_changed_that_decides() -> None:
    deciding = MAY_IMPORT["decide"] - FOUNDATION - {"stats"} | {"decide"}
    assert {f"{name}.py" for name in deciding} <= {path.name for path in _code()}


def test_help_imports_no_records() -> None:
    """`--help` stays fast: pydantic alone would double it."""
    code = "import sys, bitladder.cli.main; print('pydantic' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert ran.stdout.strip() == "False"
