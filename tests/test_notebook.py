"""The Colab notebook: its settings are `make paper`'s, it holds no output and no token, and every cell runs."""

import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from bitladder.study.settings import load_command
from harness_tasks import write_tasks

ROOT = Path(__file__).parents[1]
NOTEBOOK = json.loads((ROOT / "notebooks" / "colab_t4.ipynb").read_text())
CODE = {cell["id"]: "".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"}


def run(names: list[str]) -> dict[str, Any]:
    """Execute these cells as plain Python, which they are, in one namespace."""
    namespace: dict[str, Any] = {}
    for name in names:
        exec(compile(CODE[name], f"cell {name}", "exec"), namespace)
    return namespace


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What a notebook would show: (kind, text or path), through a stand-in for IPython's display module."""
    displayed: list[tuple[str, str]] = []
    module = ModuleType("IPython.display")
    names = {
        "display": displayed.append,
        "Markdown": lambda text: ("markdown", text),
        "Image": lambda filename: ("image", filename),
    }
    for name, value in names.items():
        setattr(module, name, value)
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))
    return displayed


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """Without the parameters' variables, the Hub and a package index."""
    for name in ("MODEL", "OUT", "SETTINGS", "PACKAGE"):
        monkeypatch.delenv(f"BITLADDER_{name}", raising=False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.chdir(tmp_path)
    return monkeypatch


def test_it_is_committed_without_output_and_is_plain_python() -> None:
    for cell in NOTEBOOK["cells"]:
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)
    assert not [line for source in CODE.values() for line in source.splitlines() if re.match(r"\s*[%!]", line)]
    assert "hf_" not in json.dumps(NOTEBOOK)


def test_its_settings_are_those_of_make_paper(environment: pytest.MonkeyPatch) -> None:
    assert run(["parameters", "settings"])["settings"] == load_command(ROOT / "examples" / "paper.yaml", {})[1]


def test_it_installs_the_checkout_that_it_lies_in(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No package index has bitladder, and another's package of the name would be no help."""
    ran: list[list[str]] = []
    environment.setattr(subprocess, "run", lambda command, **_: ran.append(command))
    with pytest.raises(FileNotFoundError, match=r"name a wheel or git\+ADDRESS in PACKAGE"):
        run(["parameters", "install"])
    assert ran == []
    environment.chdir(ROOT / "notebooks")
    run(["parameters", "install"])
    assert [(command[-1], Path(command[-1]).resolve()) for command in ran] == [("..", ROOT)]


def test_login_is_asked_for_where_there_is_none(environment: pytest.MonkeyPatch) -> None:
    asked: list[str | None] = []
    environment.setattr("huggingface_hub.notebook_login", lambda: asked.append("login"))
    for token, model, times in ((None, None, 1), ("a token", None, 1), (None, "builtin:smollm2-135m", 1)):
        environment.setattr("huggingface_hub.get_token", lambda token=token: token)
        if model is not None:
            environment.setenv("BITLADDER_MODEL", model)
        run(["parameters", "login"])
        assert len(asked) == times


@pytest.mark.slow
def test_every_cell_and_make_paper_run_with_another_model(
    tiny_llama: Path,
    tmp_path: Path,
    environment: pytest.MonkeyPatch,
    shown: list[tuple[str, str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    tasks = write_tasks(tmp_path / "tasks")
    settings = {
        "rungs": ["bf16", "nf4"],
        "tasks": [str(tasks / "tiny_choice.yaml")],
        "datasets": str(tasks),
        "scenarios": ["batch1"],
        "requests": 2,
        "prompt_tokens": 8,
        "new_tokens": 4,
        "device": "cpu",
    }
    environment.setenv("BITLADDER_MODEL", str(tiny_llama))
    environment.setenv("BITLADDER_SETTINGS", json.dumps(settings | {"trust_remote_code": True}))
    # at hand, and so fast to install: bitladder itself is what is tested
    environment.setenv("BITLADDER_PACKAGE", "pip")
    ran = run(list(CODE))
    assert [record.status for record in ran["results"].records] == ["ok"] * 6
    images = [Path(text) for kind, text in shown if kind == "image"]
    assert {path.name for path in images} >= {"figure1.png", "figure3.png", "figure4.png"}
    assert all(path.is_file() for path in images)
    texts = [text for kind, text in shown if kind == "markdown"]
    assert "Table 1. Accuracy" in texts[0]
    assert "Table 3. Performance" in "".join(texts)
    assert texts[-1].startswith("Nothing is compared: the published numbers are LLaMA 3.2 1B's")
    printed = capsys.readouterr().out
    assert ran["answer"].sentence in printed
    assert "model.safetensors" in printed
    assert set(ran["publication"].files) >= {"bitladder.json", "README.md", "model.safetensors"}
    assert ran["publication"].card in printed

    flags = " ".join(f"--{name.replace('_', '-')} {as_flag(value)}" for name, value in settings.items())
    flags += " --trust-remote-code"
    command = [
        *("make", "--no-print-directory", "--old-file=setup", "paper", f"BIN={Path(sys.executable).parent}"),
        *(f"MODEL={tiny_llama}", f"OUT={ran['results'].directory.absolute()}", f"PAPER_FLAGS={flags}"),
        "COMPARE_FLAGS=--any-model",
    ]
    stamps = {path: path.stat().st_mtime_ns for path in (ran["results"].directory / "records").iterdir()}
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert made.returncode == 0, made.stderr
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps, "the same settings: nothing is measured again"
    assert f"and this is {tiny_llama}" in made.stdout
    assert "Published speed-up and memory beside ours: batch size 1" in made.stdout


def as_flag(value: object) -> str:
    return ",".join(value) if isinstance(value, list) else str(value)
