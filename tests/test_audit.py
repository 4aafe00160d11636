"""The audit from end to end, and its command."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import typer
from typer.testing import CliRunner

from audit_checkpoints import WEIGHTS, CopyRung, edit_config, edit_weights
from bitladder.auditing import audit
from bitladder.checkpoint import loading
from bitladder.checkpoint.expected import expect
from bitladder.checkpoint.manifest import MANIFEST_NAME
from bitladder.cli.checkpoints import audit_command
from bitladder.cli.main import app as main
from bitladder.errors import BrokenFileError, UserError
from bitladder.methods import RUNGS
from bitladder.records import Audit, Finding, parse_record
from bitladder.units import format_bytes

if TYPE_CHECKING:
    import torch

pytest_plugins = ("audit_fixtures",)

app = typer.Typer()
app.command()(audit_command)


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout


def of_check(found: Audit, check: str) -> list[Finding]:
    return [finding for finding in found.findings if finding.check == check]


def _forward_repacks() -> bool:
    """Whether bitsandbytes packs 4-bit weights anew at the first forward, for this CPU's BF16 instructions."""
    from bitsandbytes.functional import has_avx512bf16

    return bool(has_avx512bf16())


@pytest.mark.parametrize("rung", RUNGS)
def test_every_rung_is_what_it_says(made_rungs: CopyRung, rung: str) -> None:
    found = audit(made_rungs(rung))
    assert found.passed, found.errors
    assert found.found == found.declared == RUNGS[rung].scheme
    assert found.loaded_bytes is not None
    if rung == "nf4-dq" and _forward_repacks():
        undone = audit(made_rungs("nf4")).loaded_bytes
        assert found.loaded_bytes == pytest.approx(undone, rel=1e-3), "the scales' own quantization is undone"
    else:
        assert found.loaded_bytes == pytest.approx(found.stored_bytes, rel=0.03)
    assert {"bytes", "size", "memory", "operators", "hardware"} <= {finding.check for finding in found.findings}
    assert parse_record(Audit, found.model_dump_json(), Path("audit"), "") == found


@pytest.mark.parametrize("rung", ["bf16", "nf4"])
def test_weights_on_disk_are_one_number(made_rungs: CopyRung, tmp_path: Path, rung: str) -> None:
    """Each finding, and what is planned and made, of all tensors: the files' headers are in none of them."""
    found = audit(made_rungs(rung))
    (size,), (memory, *_) = of_check(found, "size"), of_check(found, "memory")  # one more where weights are repacked
    assert size.data["found_bytes"] == memory.data["stored_bytes"] == found.stored_bytes
    assert expect(made_rungs(rung), RUNGS[rung].scheme).tensor_bytes == pytest.approx(found.stored_bytes, rel=1e-3)
    made = CliRunner().invoke(main, ["quantize", str(made_rungs("bf16")), "--rung", rung, "--out", str(tmp_path / "x")])
    files = sum(path.stat().st_size for path in (tmp_path / "x").glob("*.safetensors"))
    assert f"{format_bytes(found.stored_bytes)} ({files:,} bytes of files)" in made.stdout


def test_a_tampered_dtype_loads_another_type_and_fails(tiny_copy: Path) -> None:
    edit_config(tiny_copy, dtype="float32")
    found = audit(tiny_copy)
    assert not found.passed
    assert {finding.check for finding in found.errors} >= {"scheme", "loaded-types"}


def test_a_checkpoint_of_another_model_is_not_loaded(tiny_copy: Path) -> None:
    edit_config(tiny_copy, num_hidden_layers=3)
    found = audit(tiny_copy)
    assert [finding.check for finding in found.errors] == ["config"]
    assert found.loaded_bytes is None
    assert "config" in of_check(found, "load")[0].message


@pytest.mark.parametrize(("stored", "said"), [("nf4", "int8"), ("nf4", "bf16"), ("int8", "fp4"), ("bf16", "nf4")])
def test_weights_of_another_method_than_the_configs_are_not_loaded(
    copy_rung: CopyRung, made_rungs: CopyRung, stored: str, said: str
) -> None:
    directory = copy_rung(stored)
    (directory / "config.json").unlink()
    shutil.copy(made_rungs(said) / "config.json", directory)
    found = audit(directory)
    assert {finding.check for finding in found.errors} >= {"manifest"}
    assert found.loaded_bytes is None
    (directory / MANIFEST_NAME).unlink()
    unsaid = audit(directory)
    assert "scheme" in {finding.check for finding in unsaid.errors}
    assert "its config says" in of_check(unsaid, "load")[0].message


def test_altered_weights_are_a_finding_and_not_loaded(copy_rung: CopyRung) -> None:
    directory = copy_rung("nf4")
    with (directory / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 0xFF]))
    found = audit(directory)
    assert {finding.check for finding in found.errors} >= {"manifest"}
    assert any("aren't those of its manifest" in finding.message for finding in found.findings)


@pytest.mark.parametrize(
    ("architecture", "says"),
    [
        ("lamma", "unknown architecture in .*config.json 'lamma'; nearest: llama"),
        (None, "config.json: model_type: found None, expected an architecture's name"),
    ],
)
def test_an_architecture_that_nobody_can_load_is_no_pass(architecture: str | None, says: str, tiny_copy: Path) -> None:
    edit_config(tiny_copy, model_type=architecture)
    for flag in ("--load", "--no-load"):
        with pytest.raises(UserError, match=says):
            run(str(tiny_copy), flag)


def test_weights_that_do_not_load_are_no_pass(tiny_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the checks of the files let through."""

    def load_model(directory: Path, device: str, **_: object) -> None:
        raise BrokenFileError(f"{directory}: 2 tensors that config.json asks for are missing")

    monkeypatch.setattr("bitladder.auditing.load_model", load_model)
    with pytest.raises(BrokenFileError, match="2 tensors"):
        run(str(tiny_copy))


def test_a_checkpoint_whose_tokenizer_does_not_fit_warns(tiny_copy: Path) -> None:
    assert not of_check(audit(tiny_copy, load=False), "tokenizer")
    rules = json.loads((tiny_copy / "tokenizer.json").read_text())
    rules["model"]["vocab"]["far"] = 700
    (tiny_copy / "tokenizer.json").write_text(json.dumps(rules))
    assert "'far' is 700, vocab_size 512" in of_check(audit(tiny_copy, load=False), "tokenizer")[0].message
    for path in tiny_copy.glob("tokenizer*"):
        path.unlink()
    code, output = run(str(tiny_copy))
    assert code == 0 and output.splitlines()[-1].startswith("PASS") and "; warnings: tokenizer" in output
    (finding,) = of_check(audit(tiny_copy), "tokenizer")
    assert finding.severity == "warning" and finding.message.startswith("no tokenizer that transformers can load (")


def test_a_model_too_large_for_memory_is_audited_unloaded(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "available_bytes", lambda device: 1000)
    found = audit(tiny_llama)
    assert found.passed
    assert found.loaded_bytes is None
    assert "free" in of_check(found, "load")[0].message


def test_a_format_whose_library_is_missing_is_audited_unloaded(tiny_copy: Path) -> None:
    def pack(tensors: "dict[str, torch.Tensor]") -> None:
        import torch

        tensors["model.layers.0.mlp.up_proj.qweight"] = torch.zeros(8, 128, dtype=torch.int32)
        tensors["model.layers.0.mlp.up_proj.scales"] = torch.ones(2, 128)
        del tensors["model.layers.0.mlp.up_proj.weight"]

    edit_weights(tiny_copy, pack)
    edit_config(tiny_copy, quantization_config={"quant_method": "aqlm", "bits": 2})
    found = audit(tiny_copy)
    assert found.passed, found.errors
    assert found.declared.method == "other"
    assert found.loaded_bytes is None
    assert "aqlm" in of_check(found, "load")[0].message.lower()


def test_a_device_that_is_not_there(tiny_llama: Path) -> None:
    with pytest.raises(UserError, match="cuda:99"):
        audit(tiny_llama, device="cuda:99")


@pytest.mark.smollm2
def test_the_built_in_model_passes_and_was_four_bit(smollm2: Path) -> None:
    assert smollm2.is_dir()
    code, output = run("builtin:smollm2-135m", "--no-load")
    assert code == 0
    verdict = output.splitlines()[-1]
    assert verdict.startswith("PASS: builtin:smollm2-135m (by its config) is what it says: BF16 weights")
    assert "warnings: was-4-bit" in verdict


def test_the_command_passes_a_rung(made_rungs: CopyRung) -> None:
    code, output = run(str(made_rungs("nf4")), "--as", "nf4")
    assert code == 0
    verdict = output.splitlines()[-1]
    assert verdict.startswith(f"PASS: {made_rungs('nf4')} (as nf4) is what it says: NF4 weights, BF16 products")


def test_the_command_fails_another_rung(made_rungs: CopyRung) -> None:
    code, output = run(str(made_rungs("nf4")), "--as", "fp4", "--no-load")
    assert code == 1
    verdict = output.splitlines()[-1]
    assert verdict.startswith(f"FAIL: {made_rungs('nf4')} (as fp4) is not what it says: found stored type NF4")


def test_the_command_gives_json(made_rungs: CopyRung) -> None:
    code, output = run(str(made_rungs("fp16")), "--json", "--no-load", "--as", "bf16")
    assert code == 1
    found = Audit.model_validate(json.loads(output))
    assert not found.passed
    assert found.declared_by == "--as"


def test_a_file_that_cannot_be_parsed_is_bad_input(tiny_copy: Path) -> None:
    (tiny_copy / WEIGHTS).write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00" + b"not json at all!")
    with pytest.raises(BrokenFileError, match=WEIGHTS):
        run(str(tiny_copy))


@pytest.mark.slow
def test_in_python_it_prints_nothing_of_a_librarys(tiny_llama: Path, tmp_path: Path) -> None:
    """README's example: torch's profiler would greet, transformers draw bars, and Kineto log."""
    code = (
        "import sys; from pathlib import Path; from bitladder import audit, quantize\n"
        "made = quantize(sys.argv[1], 'nf4', out=Path(sys.argv[2]))\nassert audit(made.directory).passed"
    )
    environment = {name: value for name, value in os.environ.items() if name != "KINETO_LOG_LEVEL"}
    command = [sys.executable, "-c", code, str(tiny_llama), str(tmp_path / "nf4")]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert (ran.stdout, ran.stderr) == ("", "")
