"""What is exchanged in libraries stands in one place, is there to be exchanged, and comes back."""

import ast
from pathlib import Path

import pytest

from bitladder.patches import PATCHES, Patch, attribute_of, patched, target_of

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
