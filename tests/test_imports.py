"""Imports point one way; measuring and reporting meet only in the store."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bitladder.report.output import _code

PACKAGE = Path(__file__).parents[1] / "src" / "bitladder"
WORDS = {"package", "errors", "units", "files"}
"""what everyone may import"""
BASE = WORDS | {"text", "machine", "records", "methods", "executors", "checkpoint", "results"}
"""rooms that both measuring and reporting stand on"""
DECIDING = BASE | {"stats", "summary"}
MAY_IMPORT = {
    "package": set(),
    "errors": WORDS,
    "units": WORDS,
    "files": WORDS,
    "text": WORDS | {"machine"},
    "records": WORDS | {"text"},
    "methods": WORDS | {"text", "machine", "records"},
    "machine": WORDS | {"text", "records"},
    "executors": WORDS | {"machine", "records"},
    # what speaks of stages and of parts is said of rungs
    "checkpoint": WORDS | {"text", "machine", "records", "methods"},
    "results": WORDS | {"text", "machine", "records", "methods", "checkpoint"},
    "auditing": BASE,
    "models": BASE,
    "quantization": BASE | {"auditing", "models"},
    "tasks": BASE,
    "accuracy": BASE | {"models", "tasks"},
    "perf": BASE,
    # summary: what decides whether a rung is asked on is what its verdict will be
    "study": DECIDING | {"auditing", "models", "quantization", "tasks", "accuracy", "perf"},
    # numbers in, numbers out
    "stats": {"records"},
    "summary": DECIDING,
    "decide": DECIDING,
    "report": DECIDING | {"decide"},
    "publish": DECIDING | {"auditing", "models", "quantization"},
}
MAY_IMPORT_ALL = ("cli", "__init__", "__main__")
HEAVY = ("torch", "transformers", "lm_eval", "bitsandbytes", "datasets", "accelerate")


BY_TEXT = (
    "files",
    "path",
    "open_text",
    "read_text",
    "get_data",
    "import_module",
    "find_spec",
    "__import__",
    "run_module",
)
"""functions of importlib and its like that take a package's name"""
HIDDEN = ("exec", "eval", "__import__", "pkgutil", "runpy", "__spec__", "__package__", "__loader__")
"""names by which a file could reach anything, unseen"""
MAY_HIDE = {"libraries.py": "pkgutil"}
"""the libraries' attributes are found by name"""


def is_text(node: ast.AST, text: str) -> bool:
    return isinstance(node, ast.Constant) and node.value == text


def module_parts(path: Path) -> list[str]:
    return list(path.relative_to(PACKAGE).with_suffix("").parts)


MODULES = {".".join(["bitladder", *module_parts(path)]).removesuffix(".__init__") for path in PACKAGE.rglob("*.py")}


def reached(source: str) -> Iterator[str]:
    """What of bitladder a file reaches, with dots: by any import, nested ones too, or as a text that names a module."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "an import relative to the file's own place"
            module = node.module or ""
            whole = [f"{module}.{alias.name}" for alias in node.names]
            yield from (one if one in MODULES or module == "bitladder" else module for one in whole)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in MODULES - {"bitladder"}:
            yield node.value  # for importlib, runpy, `python -m`
        elif isinstance(node, ast.Call) and any(is_text(one, "bitladder") for one in node.args):
            name = ast.unparse(node.func).rpartition(".")[2]
            yield from ["bitladder"] if name in BY_TEXT else []


def imported_parts(source: str) -> Iterator[str]:
    """The parts of bitladder that a file imports; of what the package's root hands on that is the root itself."""
    for name in reached(source):
        if name.split(".")[0] == "bitladder":
            below = name.split(".")[1:]
            yield below[0] if name in MODULES and below else "__init__"


def forbidden(path: Path, source: str) -> list[str]:
    """What a file imports that it may not."""
    part = module_parts(path)[0]
    if part in MAY_IMPORT_ALL:
        return []
    allowed = MAY_IMPORT[part] | {part}
    return [one for one in imported_parts(source) if one not in allowed]


def test_imports_point_one_way() -> None:
    paths = list(PACKAGE.rglob("*.py"))
    assert len(paths) > 50
    for path in paths:
        assert forbidden(path, path.read_text(encoding="utf-8")) == [], path


@pytest.mark.parametrize(
    "line",
    [
        "import bitladder",
        "import bitladder.decide",
        "from bitladder import decide",
        "from bitladder import recommend",
        "from bitladder.decide import recommend",
        "from bitladder import store, report as pages",
        "files('bitladder.report').joinpath('page.html').read_text()",
        "import_module('bitladder.study.worker')",
        "def late():\n    from bitladder import study",
        "files('bitladder').joinpath('summary', 'published.json')",
        "import_module('.decide', 'bitladder')",
        "__import__('bitladder', fromlist=['decide'])",
    ],
)
def test_the_guard_sees_every_way(line: str) -> None:
    """Also those that name no module of their own."""
    assert forbidden(PACKAGE / "stats" / "interval.py", line)


def test_a_study_knows_of_no_descriptors() -> None:
    """How a job reaches a worker, and its messages come back, is its executor's."""
    descriptors = {"os", "selectors", "socket", "subprocess"}
    for path in (PACKAGE / "study").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [one.name for one in node.names]
                assert not descriptors & set(names), path
            assert not (isinstance(node, ast.Attribute) and node.attr == "fileno"), path


def test_nothing_is_reached_unseen() -> None:
    """By a built text, or past the import system; `.__file__` of another module leads into its folder."""
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        names |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        assert names.intersection(HIDDEN) <= {MAY_HIDE.get(path.name)}, path
        attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        assert not attributes.intersection(("__file__", "__spec__", "__loader__", "__path__")), path


def test_a_file_reads_beside_itself_alone() -> None:
    """`__file__` leads into other packages' folders, past every import; `package.FOLDER` is for the report's stamp,
    which hashes the code that decides, wherever it lies."""
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Name) and node.id == "__file__":
                assert path == PACKAGE / "package.py", path
            whole = isinstance(node, ast.ImportFrom) and node.module == "bitladder.package"
            names = [alias.name for alias in node.names] if whole and isinstance(node, ast.ImportFrom) else []
            if "FOLDER" in names or (isinstance(node, ast.Attribute) and node.attr == "FOLDER"):
                assert path == PACKAGE / "report" / "output.py", path


def test_no_heavy_import_at_start() -> None:
    """One process for all: the first line that isn't empty names what imports."""
    modules = (
        "bitladder.cli.main",
        "bitladder.results.store",
        "bitladder.results.merge",
        "bitladder.decide",
        "bitladder.report",
    )
    code = "import sys\n" + "".join(
        f"import {module}\nprint({module!r}, [name for name in {HEAVY!r} if name in sys.modules])\n"
        for module in modules
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert ran.stdout.splitlines() == [f"{module} []" for module in modules]


def test_a_report_is_made_anew_where_anything_changed_that_decides() -> None:
    assert set((PACKAGE / "decide").glob("*.py")) <= set(_code())


def test_help_imports_no_records() -> None:
    """`--help` stays fast: pydantic alone would double it."""
    code = "import sys, bitladder.cli.main; print('pydantic' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert ran.stdout.strip() == "False"
