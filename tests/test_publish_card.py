"""The model card: what it says, that the Hub can read its header, and that nothing in it breaks out."""

import os
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

import bitladder
from bitladder.errors import UserError
from bitladder.models.source import resolve_model, source_hash
from bitladder.publish.card import MeasuredRung, Origin, find_measured, find_origin, source_name, to_card, without_path
from bitladder.quantization import quantize
from bitladder.records import Audit, Finding, Manifest, Source
from bitladder.results.store import load_results
from hub_server import Blob, Hub, Repository, serve
from replay import write_replay

pytest_plugins = ("audit_fixtures",)

GOLDEN = Path(__file__).parent / "golden" / "card.md"
EVIL = "a](http://x) | <script>alert(1)</script> `b`\n---\n# c"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_replay(tmp_path_factory.mktemp("study"), ends={("nf4", "max-batch"): ("timeout", "no answer")})


def checkpoint(study: Path, rung: str) -> tuple[Manifest, Audit, MeasuredRung]:
    record = load_results(study).rungs[rung]
    assert record.manifest is not None
    assert record.audit is not None
    return record.manifest, record.audit, find_measured(study, record.manifest)


def test_card_is_golden(study: Path) -> None:
    manifest, audit, measured = checkpoint(study, "nf4")
    card = to_card("lab/nf4", manifest, audit, find_origin(manifest.source), measured)
    card = card.replace(f"bitladder {bitladder.__version__} |", "bitladder VERSION |")
    if os.environ.get("BITLADDER_UPDATE_GOLDEN"):
        GOLDEN.write_text(card)
    assert card == GOLDEN.read_text()


def test_notes_are_of_its_own_rung(study: Path) -> None:
    of_int8 = "Accuracy of int8: LLM.int8 takes for outliers"
    for rung in ("bf16", "nf4", "int8"):
        manifest, audit, measured = checkpoint(study, rung)
        card = to_card(f"lab/{rung}", manifest, audit, Origin(None), measured)
        assert (of_int8 in card) == (rung == "int8")
        assert "> The built-in questions are variations" in card, "which is true of every rung"


def test_header_is_what_the_hub_reads(study: Path) -> None:
    manifest, audit, _ = checkpoint(study, "int8")
    origin = Origin("meta-llama/Llama-3.2-1B", {"license": "llama3.2"})
    header = ModelCard(to_card("lab/int8", manifest, audit, origin, None)).data.to_dict()  # type: ignore[no-untyped-call]
    assert header == {
        "base_model": "meta-llama/Llama-3.2-1B",
        "base_model_relation": "quantized",
        "library_name": "transformers",
        "license": "llama3.2",
        "pipeline_tag": "text-generation",
        "tags": ["bitladder", "int8", "bitsandbytes", "8-bit"],
    }


def test_unknown_licence_is_left_out_of_the_header_with_a_reason_below(study: Path) -> None:
    manifest, audit, _ = checkpoint(study, "bf16")
    card = to_card("lab/bf16", manifest, audit, Origin(None, {}, "nobody said"), None)
    header = ModelCard(card).data.to_dict()  # type: ignore[no-untyped-call]
    assert not {"license", "base_model", "base_model_relation"} & set(header)
    assert "| Licence | not known: nobody said |" in card


def test_baseline_is_not_compared_with_itself(study: Path) -> None:
    manifest, audit, measured = checkpoint(study, "bf16")
    card = to_card("lab/bf16", manifest, audit, Origin(None), measured) if measured else ""
    assert "| Task | Questions | bf16 |\n" in card
    assert "Difference" not in card


def test_the_card_of_an_unfinished_study_says_so_first(tmp_path: Path) -> None:
    study = write_replay(tmp_path, absent={("nf4", "max-batch"), ("bf16", "bitladder_language")})
    manifest, audit, measured = checkpoint(study, "nf4")
    card = to_card("lab/nf4", manifest, audit, Origin(None), measured)
    first = next(line for line in card.splitlines() if line.startswith("> "))
    assert first.startswith("> Unfinished, 28 of 30 measurements so far: ")
    assert "failed" not in card


def test_what_was_not_measured_well_is_a_line_and_no_column(tmp_path: Path) -> None:
    """It filled a table with its reason, under the machine that it was said to be measured on."""
    reason = "disturbed: it waited for a processor"
    ends = {("nf4", "batch1"): ("failed", reason), ("bf16", "max-batch"): ("does_not_fit", "needs 9 GiB")}
    study = write_replay(tmp_path, ends=ends)  # type: ignore[arg-type]
    manifest, audit, measured = checkpoint(study, "nf4")
    card = to_card("lab/nf4", manifest, audit, Origin(None), measured)
    alone = card.partition("## Performance: batch size 1\n")[2].partition("\n## ")[0].strip()
    assert alone == f"- nf4: failed: {reason}."
    largest = card.partition("## Performance: largest batch\n")[2].partition("\n## ")[0].strip()
    assert largest.startswith("|  | nf4 |\n| --- | --- |\n| Batch size | ")
    assert "\n- bf16: does not fit: needs 9 GiB.\n" in largest and "\n- Measured on Replayed CPU.\n" in largest


def test_text_from_outside_is_inert(study: Path) -> None:
    manifest, audit, _ = checkpoint(study, "nf4")
    source = Source(model=EVIL, kind="hub", revision=EVIL, content_hash=EVIL, note=EVIL)
    manifest = manifest.model_copy(
        update={"rung": EVIL, "source": source, "architecture": EVIL, "versions": {EVIL: EVIL}}
    )
    audit = audit.model_copy(update={"findings": (Finding(check=EVIL, severity="info", message=EVIL),)})
    card = ModelCard(to_card("lab/x", manifest, audit, Origin(EVIL, {"license": EVIL}), None))
    assert card.data.get("tags")[1] == EVIL
    assert card.data.get("base_model") == EVIL
    assert "\\<script>" in card.text
    assert "<script>" not in card.text.replace("\\<script>", "")
    assert "](http" not in card.text
    assert "\n# c" not in card.text
    assert all(line.count(" | ") <= 4 for line in card.text.splitlines() if line.startswith("|"))


def test_results_are_found_by_content_not_by_name(study: Path) -> None:
    manifest, _, _ = checkpoint(study, "nf4")
    assert find_measured(study, manifest.model_copy(update={"rung": "mine"})).rung.rung == "nf4"
    with pytest.raises(UserError, match="its results are for bf16 "):
        find_measured(study, manifest.model_copy(update={"content_hash": "00" * 32}))


def test_origin_of_the_builtin_model() -> None:
    source = Source(model="builtin:smollm2-135m", kind="builtin", revision=None, content_hash="00" * 32)
    assert find_origin(source) == Origin("HuggingFaceTB/SmolLM2-135M-Instruct", {"license": "apache-2.0"})


def test_origin_of_the_built_in_shape_is_none() -> None:
    source = Source(model="builtin:llama-3.2-1b-shape", kind="builtin", revision=None, content_hash="00" * 32)
    assert find_origin(source) == Origin(None, {}, "the built-in model has none")


def test_origin_of_a_directory(tiny_copy: Path) -> None:
    source = Source(model=str(tiny_copy), kind="directory", revision=None, content_hash=source_hash(tiny_copy))
    assert find_origin(source) == Origin(None, {}, "the source is a local directory without README.md")
    (tiny_copy / "README.md").write_text("---\nlicense: mit\n---\n# tiny\n")
    assert find_origin(source) == Origin(None, {"license": "mit"})
    (tiny_copy / "README.md").write_text("---\nlicense: [\n---\n")
    assert find_origin(source) == Origin(None, {}, "the header of the source's README.md can't be read")
    (tiny_copy / "README.md").write_text("# tiny\n")
    assert find_origin(source) == Origin(None, {}, "the source's README.md names none")
    (tiny_copy / "config.json").write_text((tiny_copy / "config.json").read_text() + "\n")
    assert find_origin(source) == Origin(None, {}, "the source's directory has changed since")


def test_what_a_checkpoint_of_ours_was_made_from_goes_on(tiny_copy: Path, tmp_path: Path) -> None:
    """A note on the source, its licence and its name are the same for what is made of what was made of it."""
    checkpoint = quantize(str(tiny_copy), "bf16", out=tmp_path / "bf16")
    manifest = checkpoint.manifest
    source = Source(
        model="builtin:smollm2-135m", kind="builtin", revision=None, content_hash="00" * 32, note="was 4-bit"
    )
    made = manifest.model_copy(update={"source": source})
    (tmp_path / "bf16" / "bitladder.json").write_text(made.model_dump_json())
    found = resolve_model(str(tmp_path / "bf16")).source
    assert (found.kind, found.note, found.origin) == ("directory", "was 4-bit", source)
    assert find_origin(found) == find_origin(source)
    nf4 = quantize(str(tmp_path / "bf16"), "nf4", out=tmp_path / "nf4").manifest
    assert source_name(nf4) == "builtin:smollm2-135m"
    own = manifest.model_copy(update={"source": manifest.source.model_copy(update={"origin": manifest.source})})
    assert without_path(own.source).model_dump_json().count(str(tmp_path)) == 0


def test_origin_on_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    source = Source(model="lab/base", kind="hub", revision=None, content_hash="00" * 32)
    with serve() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        head = add_model(hub, "---\nlicense: other\nlicense_name: lab\nlicense_link: LICENSE\n---\n")
        assert find_origin(source.model_copy(update={"revision": head})).license == {
            "license": "other",
            "license_name": "lab",
            "license_link": f"{hub.url}/lab/base/blob/{head}/LICENSE",
        }
        add_model(hub, "# base\n")
        assert find_origin(source) == Origin("lab/base", {}, "the source's card names none")
        hub.repositories.clear()
        assert find_origin(source) == Origin("lab/base", {}, "the Hub could not be asked for the source's")


def add_model(hub: Hub, card: str) -> str:
    hub.repositories["lab/base"] = repository = Repository(private=False)
    return repository.add({"README.md": Blob(card.encode(), False)})
