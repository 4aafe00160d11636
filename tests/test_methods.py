"""Quantization methods: nothing outside their files asks which one a scheme is of."""

import ast
import importlib.util
from pathlib import Path
from typing import get_args

import pytest
from typer.testing import CliRunner

from bitladder.cli.main import app as main
from bitladder.errors import UserError
from bitladder.methods import METHODS, RUNGS, method_of
from bitladder.methods.bitsandbytes import BitsAndBytes
from bitladder.methods.method import Types
from bitladder.records import MethodName

PACKAGE = Path(__file__).parents[1] / "src" / "bitladder"
SPOKEN = {"plain", "other"}
"""names that are words of their own"""
LAYERS = {method.layer_class for method in METHODS.values() if isinstance(method, BitsAndBytes)}
FILES = {path.stem for path in (PACKAGE / "methods").glob("*.py")}
SHARED = {"method"}
"""files of `methods` that are no method's"""
MAY_NAME = {PACKAGE / "records" / "checkpoint.py"}


def asks(source: str) -> list[str]:
    """What compares a scheme's method with anything, matches it, or is a method's name."""
    found = []
    for node in ast.walk(ast.parse(source)):
        parts: list[ast.AST] = []
        if isinstance(node, ast.Compare):
            parts = [node.left, *node.comparators]
        elif isinstance(node, ast.Match):
            parts = [node.subject]
        elif isinstance(node, ast.Attribute) and hasattr(str, node.attr):
            parts = [node.value]  # scheme.method.startswith("bnb")
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("bitladder.methods"):
            within = {alias.name for alias in node.names} if node.module == "bitladder.methods" else {node.module[18:]}
            parts = [node] if within & FILES - SHARED else []  # to ask with `is` or isinstance
        named = isinstance(node, ast.Constant) and node.value in {*METHODS, *LAYERS} - SPOKEN
        if named or any(part is node or (isinstance(part, ast.Attribute) and part.attr == "method") for part in parts):
            found.append(ast.unparse(node))
    return found


def test_only_methods_ask_which_one_it_is() -> None:
    paths = [path for path in PACKAGE.rglob("*.py") if path.parent.name != "methods" and path not in MAY_NAME]
    assert len(paths) > 100
    assert {path: found for path in paths if (found := asks(path.read_text(encoding="utf-8")))} == {}


@pytest.mark.parametrize(
    "line",
    [
        "scheme.method == 'plain'",
        "'other' != audit.declared.method",
        "subject.found.method in KNOWN",
        "x = {'llm.int8': 1}",
        "match scheme.method:\n    case 'plain': pass",
        "scheme.method.startswith('bnb')",
        "from bitladder.methods.bitsandbytes import LLM_INT8",
        "from bitladder.methods import bitsandbytes",
        "type(layer).__name__ == 'Linear4bit'",
    ],
)
def test_the_guard_sees_every_way(line: str) -> None:
    assert asks(line)


def test_a_name_is_a_row() -> None:
    """What a record may name is what the table answers for."""
    assert set(METHODS) == set(get_args(MethodName))
    for row in RUNGS.values():
        assert row.method.name == row.scheme.method


@pytest.mark.parametrize("rung", RUNGS)
def test_a_rung_knows_its_own_settings(rung: str) -> None:
    """From what transformers writes into config.json, without any tensor."""
    row = RUNGS[rung]
    for package in row.method.packages:
        pytest.importorskip(package)
    config = row.method.quantization_config(row.scheme)
    types = Types(stored=row.scheme.stored_type, computed=row.scheme.rest_type, rest=row.scheme.rest_type)
    settings = config if config is None else config.to_dict()
    claimed = [scheme for method in METHODS.values() if (scheme := method.declared(settings, types)) is not None]
    assert claimed[0] == row.scheme
    assert method_of(claimed[0]) is row.method


def test_a_study_without_a_rungs_package_begins_nothing(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "bitsandbytes" else find(name))
    out = tmp_path / "out"
    ran = CliRunner().invoke(main, ["study", str(tiny_llama), "--rungs", "bf16,nf4", "--out", str(out)])
    assert isinstance(ran.exception, UserError)
    assert "rung nf4 needs the package bitsandbytes, which isn't installed" in str(ran.exception)
    assert "`pip install bitsandbytes`" in str(ran.exception)
    assert not list(out.rglob("*.json"))
