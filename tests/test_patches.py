"""What is exchanged in libraries stands in one place, is there to be exchanged, and comes back."""

import ast
from pathlib import Path

import pytest

from bitladder.machine.libraries import PATCHES, Patch, attribute_of, patched, target_of

EXCHANGED = {"forward", "__class__", "__call__", "modules"}
"""attributes that a plain assignment must not set: what a layer does, what it is, which modules there are"""
ALLOWED = {
    ("checkpoint/skeleton.py", "layer.__class__ = Watched"): "of a network of our own without memory, and put back",
    ("checkpoint/skeleton.py", "layer.__class__ = nn.Linear"): "put back",
    ("machine/libraries.py", "modules['kernels'] = None"): "Python's own way to let no import find a module",
}
PACKAGE = Path(__file__).parents[1] / "src" / "bitladder"


@pytest.mark.parametrize("name", PATCHES)
def test_the_library_has_what_is_exchanged(name: str) -> None:
    assert hasattr(target_of(name), attribute_of(name))
    assert PATCHES[name].why
    assert PATCHES[name].until


def test_nothing_else_patches() -> None:
    names = set()
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert "unittest" not in text, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id.startswith("patch"):
                names.add(ast.unparse(node.args[0]))
    used = {name for name in PATCHES if repr(name) in names or name.endswith(":apply_rotary_pos_emb")}
    assert used == PATCHES.keys()


def exchanges(tree: ast.AST) -> list[str]:
    """Assignments to an attribute of another object, or into a table, under such a name."""
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Assign):
            continue
        for target in node.targets:
            name = target.attr if isinstance(target, ast.Attribute) else ""
            if isinstance(target, ast.Subscript):
                name = ast.unparse(target.value).rpartition(".")[2]
            if name in EXCHANGED:
                found.append(ast.unparse(node))
    return found


def test_no_plain_assignment_patches() -> None:
    found = {
        (path.relative_to(PACKAGE).as_posix(), code)
        for path in PACKAGE.rglob("*.py")
        for code in exchanges(ast.parse(path.read_text(encoding="utf-8")))
    }
    assert found == ALLOWED.keys()


@pytest.mark.parametrize("code", ["layer.forward = ours", "torch.nn.Module.__call__ = x", "sys.modules['x'] = None"])
def test_each_assignment_that_patches_is_seen(code: str) -> None:
    assert exchanges(ast.parse(code))


class _Library:
    shared = "theirs"


def test_an_attribute_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of the object itself as it was, one of its class without a trace on the object."""
    monkeypatch.setitem(PATCHES, "test:shared", Patch("", ""))
    own = _Library()
    own.shared = "its own"
    plain = _Library()
    for library, before in ((own, {"shared": "its own"}), (plain, {})):
        with pytest.raises(RuntimeError), patched("test:shared", "ours", library):
            assert library.shared == "ours"
            raise RuntimeError
        assert vars(library) == before
