"""Every text file and stream of ours is UTF-8, whatever the locale says."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "bitladder"
TEXT_METHODS = {"read_text", "write_text"}
OPENERS = {"open": 1, "fdopen": 1, "TemporaryFile": 0, "NamedTemporaryFile": 0}
"""function, and where its mode stands; of a path's own ``open`` one earlier"""


def texts_without_encoding(source: str) -> Iterator[int]:
    """Lines of calls that would read or write text as the locale says."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        keywords = {keyword.arg: keyword.value for keyword in node.keywords}
        if "encoding" in keywords:
            continue
        if name in TEXT_METHODS and not (name == "read_text" and node.args):
            yield node.lineno
        elif name in OPENERS:
            module = getattr(getattr(node.func, "value", None), "id", "")
            if module in ("gzip", "tarfile", "ZipFile") or (name == "open" and module == "os"):
                continue
            of_path = name == "open" and isinstance(node.func, ast.Attribute)
            place = OPENERS[name] - of_path
            mode = keywords.get("mode") or (node.args[place] if len(node.args) > place else None)
            default = "w+b" if name.endswith("TemporaryFile") else "r"
            if "b" not in (mode.value if isinstance(mode, ast.Constant) else default):  # type: ignore[operator]
                yield node.lineno
        elif name in ("run", "Popen", "check_output") and {"text", "universal_newlines"} & keywords.keys():
            yield node.lineno


def test_no_file_of_ours_leaves_it_to_the_locale() -> None:
    found = [
        f"{path.relative_to(PACKAGE)}:{line}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for line in texts_without_encoding(path.read_text(encoding="utf-8"))
    ]
    assert found == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("p.read_text()", True),
        ("p.read_text(errors='replace')", True),
        ("p.read_text(encoding='utf-8')", False),
        ("p.write_text(x)", True),
        ("p.open()", True),
        ("p.open('w')", True),
        ("p.open('rb')", False),
        ("open(p)", True),
        ("open(p, 'rb')", False),
        ("os.fdopen(d, 'w')", True),
        ("os.fdopen(d, 'w', encoding='utf-8')", False),
        ("tempfile.TemporaryFile()", False),
        ("tempfile.NamedTemporaryFile('w')", True),
        ("subprocess.run(c, text=True)", True),
        ("subprocess.run(c)", False),
        ("tarfile.open(p, 'r:gz')", False),
    ],
)
def test_what_counts_as_left_to_the_locale(source: str, found: bool) -> None:
    assert bool(list(texts_without_encoding(source))) == found
