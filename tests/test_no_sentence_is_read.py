"""No control flow reads a sentence that our own code wrote: it asks for a type, a kind or a status."""

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "bitladder"
WORDS = 3
"""from so many on a text is a sentence"""
NAMES = ("reason", "message", "sentence", "blame", "failure", "remark", "note", "detail", "words")
"""of what holds one; also after an underscore, such as ``chance_reason``"""
SEARCHES = (
    "startswith",
    "endswith",
    "removeprefix",
    "removesuffix",
    "partition",
    "rpartition",
    "split",
    "find",
    "index",
)
PATTERNS = ("search", "match", "fullmatch", "findall", "finditer")
ALLOWED = {
    ("tasks/library.py", 'str(error).endswith("size 0")'): "datasets names this end in its message alone",
    ("tasks/mirror.py", '"scripts are no longer supported" in str(error)'): "so does it this one",
    ("checkpoint/architecture.py", "_COMMAND.search(str(error))"): "a package's, which names the command",
    ("files.py", "_RUST_ERROR.search(str(error))"): "safetensors', whose errors have no number",
    ("checkpoint/loading.py", "NO_ROOM not in str(error)"): "accelerate's, of what it places elsewhere",
    ("checkpoint/loading.py", '"trust_remote_code" in str(error)'): "transformers'",
    ("checkpoint/loading.py", '"model type" in str(error)'): "transformers'",
    ("checkpoint/loading.py", '"model_type" in str(error)'): "transformers'",
    ("perf/memory.py", "text in str(error)"): "torch's and CUDA's, of memory that ran out",
    (
        "checkpoint/architecture.py",
        "(error.name or str(error)).partition('.')",
    ): "Python's, of a package that is missing",
    ("machine/cards.py", "str(error).strip().partition('\\n')"): "torch's, of which the first line is shown",
    ("auditing/loaded.py", "str(error).removeprefix(f'{subject.directory}: ')"): "shown without its folder",
    (
        "records/measurement.py",
        "(self.reason or '').startswith(_DISTURBED_BEFORE)",
    ): "of records from before its field",
    ("report/content.py", "failure not in told"): "a line that is printed is not printed again",
    ("accuracy/logs.py", "_target -> int | str"): "a target of lm-eval's is either",
    ("tasks/expansion.py", "option not in _PLAIN_OPTIONS.split()"): "a list of names",
    ("checkpoint/scheme.py", "quant_type: str | dict[str, Any] | None"): "torchao's, by its version",
    ("records/measurement.py", "launch: dict[str, str | int | float | bool | None]"): "named facts",
    ("report/table.py", "_no_formulas -> list[float | str | None]"): "a cell has a number or a text",
    ("report/table.py", "value: float | int | str | None"): "the same",
}
"""what reads one, and whose it is or why nothing follows from it"""


def texts(node: ast.AST) -> Iterator[str]:
    """All string constants in it."""
    for part in ast.walk(node):
        if isinstance(part, ast.Constant) and isinstance(part.value, str):
            yield part.value


def is_sentence(text: str) -> bool:
    return len(text.split()) >= WORDS


class Sentences:
    """What of the package's names are constants with sentences, and which texts are members of a Literal: names."""

    def __init__(self, trees: Iterable[ast.Module]) -> None:
        trees = list(trees)
        parts = (part for tree in trees for part in ast.walk(tree) if isinstance(part, ast.Subscript))
        self.members = {text for part in parts if ast.unparse(part.value) == "Literal" for text in texts(part.slice)}
        self.constants: set[str] = set()
        for node in (node for tree in trees for node in tree.body):
            if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Constant | ast.Tuple):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                if self.holds(node.value):
                    self.constants |= {target.id for target in targets if isinstance(target, ast.Name)}

    def holds(self, node: ast.expr) -> bool:
        """Whether an operand is a sentence of ours, or what holds one."""
        if isinstance(node, ast.Tuple | ast.Set | ast.List):
            return any(map(self.holds, node.elts))
        if isinstance(node, ast.Call):
            of_error = (
                isinstance(node.func, ast.Name) and node.func.id == "str" and ast.unparse(node.args[0]) == "error"
            )
            return of_error or (isinstance(node.func, ast.Attribute) and self.holds(node.func.value))
        if isinstance(node, ast.BoolOp):
            return any(map(self.holds, node.values))
        if isinstance(node, ast.Constant):
            return isinstance(node.value, str) and is_sentence(node.value) and node.value not in self.members
        if isinstance(node, ast.Subscript):
            return self.holds(node.value)
        name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
        return name in self.constants or any(name == one or name.endswith(f"_{one}") for one in NAMES)


def found_in(tree: ast.Module, sentences: Sentences) -> Iterator[str]:
    """What compares or searches a sentence, and what returns one instead of a value."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            both = zip([node.left, *node.comparators], node.ops, node.comparators, strict=False)
            for left, how, right in both:
                is_read = isinstance(how, ast.Eq | ast.NotEq | ast.In | ast.NotIn)
                if is_read and (sentences.holds(left) or sentences.holds(right)):
                    yield ast.unparse(node)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in SEARCHES:
            if sentences.holds(node.func.value) and (node.args or node.func.attr != "split"):
                yield ast.unparse(node)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in PATTERNS:
            if any(map(sentences.holds, node.args)):
                yield ast.unparse(node)
        elif isinstance(node, ast.FunctionDef) and node.returns is not None and instead_of_a_value(node.returns):
            yield f"{node.name} -> {ast.unparse(node.returns)}"
        elif isinstance(node, ast.AnnAssign) and instead_of_a_value(node.annotation):
            yield f"{ast.unparse(node.target)}: {ast.unparse(node.annotation)}"


def instead_of_a_value(annotation: ast.expr) -> bool:
    """Whether a text may stand where another type does, which `isinstance(_, str)` would tell apart."""
    for part in ast.walk(annotation):
        if isinstance(part, ast.BinOp):
            members = ast.unparse(part).split(" | ")
            if "str" in members and set(members) - {"str", "None", "bytes"}:
                return True
    return False


def all_found() -> set[tuple[str, str]]:
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in PACKAGE.rglob("*.py")}
    sentences = Sentences(trees.values())
    return {
        (path.relative_to(PACKAGE).as_posix(), found)
        for path, tree in trees.items()
        for found in found_in(tree, sentences)
    }


def test_no_control_flow_reads_a_sentence_of_ours() -> None:
    assert all_found() == {(file, code.replace('"', "'")) for file, code in ALLOWED}


@pytest.mark.parametrize(
    "code",
    [
        "found = leaf == NOT_MEASURED",
        'done = self.why(item) in (NOT_MADE, "measured by none of them")',
        'left = NOT_MADE in leaves.values() or end.kind == "other"',
        "if rung.no_signal_reason == told: pass",
        'any(f": {WORD}" in failure for failure in failures)',
        "finding.message.lower().startswith('x')",
        "name, _, why = one.reason.partition(': ')",
        "def compare(one: Row) -> dict[str, Figure | str]: ...",
        "chances: list[float | str] = []",
        "re.search('not made', one.reason)",
        "PATTERN.match(end.detail)",
        "one.reason[:8] == 'not made'",
        "end.detail == 'x'",
    ],
)
def test_each_way_to_read_one_is_seen(code: str) -> None:
    constants = ast.parse('NOT_MEASURED = "not measured yet"\nNOT_MADE: Final = "not made yet"')
    assert list(found_in(ast.parse(code), Sentences([constants])))


@pytest.mark.parametrize(
    "code",
    [
        'verdict == "lower but within"',
        'end.kind == "not_measured"',
        "rung.reason is None",
        "text.split()",
        "def name(self) -> str | None: ...",
    ],
)
def test_a_name_is_no_sentence(code: str) -> None:
    names = ast.parse('Verdict = Literal["lower but within", "beyond the margin"]')
    assert not list(found_in(ast.parse(code), Sentences([names])))
