"""Ready checkpoints beside the rungs: which are let in, and a study of them from audit to report."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from audit_checkpoints import CopyRung, edit_config, edit_weights
from bitladder.accuracy.answers import study_answers
from bitladder.auditing import audit
from bitladder.checkpoint.architecture import require_format
from bitladder.checkpoint.manifest import PROBES, probe_texts, require_same_tokens, same_rules
from bitladder.checkpoint.scheme import config_scheme
from bitladder.cli import dry_run
from bitladder.cli.dry_run import print_plan
from bitladder.decide import recommend
from bitladder.decide.recommendation import Limits
from bitladder.errors import UserError
from bitladder.executors.forkserver import ForkServer
from bitladder.methods import find_rung, ready_title
from bitladder.records import LoadPolicy, Record, RungRecord
from bitladder.report.content import compose
from bitladder.report.output import to_markdown
from bitladder.results import study_of
from bitladder.results.merge import merge_results, pack
from bitladder.results.store import Store, load_results
from bitladder.study import worker
from bitladder.study.estimate import estimate_study
from bitladder.study.messages import Job, RungMade
from bitladder.study.plan import plan_resolutions
from bitladder.study.prepare import find_added, prepare, require_same_prompts
from bitladder.study.run import StudyRun, run_study
from bitladder.study.settings import _added, load_command
from bitladder.study.workers import Workers
from bitladder.summary.summarize import summarize
from conftest import MakeTinyLlama
from test_study_run import Counting, job_for, settings_for, write_tasks

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

pytest_plugins = ("audit_fixtures",)

Edit = Callable[[Path], None]

OVERHEADS = {"plain": 1000, "llm.int8": 1000, "bnb-4bit": 1000}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("tasks"))


def refusal(baseline: Path, directory: Path, *, chat_template: bool = False, trust: bool = False) -> str:
    """The line that refuses ``directory`` beside the baseline."""
    with pytest.raises(UserError) as caught:
        policy = LoadPolicy(trust_remote_code=trust)
        find_added({"x": str(directory)}, baseline, policy, chat_template=chat_template)
    line = str(caught.value)
    assert line.startswith("--add x: ")
    assert "\n" not in line
    return line


def pickle_weights(directory: Path) -> None:
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")


def edit_tokenizer(directory: Path, edit: Callable[[dict[str, dict[str, object]]], None]) -> None:
    path = directory / "tokenizer.json"
    rules = json.loads(path.read_text())
    edit(rules)
    path.write_text(json.dumps(rules))


def say_lower(directory: Path) -> None:
    edit_tokenizer(directory, lambda rules: rules.update(normalizer={"type": "Lowercase"}))


def replace_text(old: str, new: str) -> Callable[[dict[str, dict[str, object]]], None]:
    """A tokenizer that reads one text as another."""
    return lambda rules: rules.update(normalizer={"type": "Replace", "pattern": {"String": old}, "content": new})


def quantized(**fields: object) -> Edit:
    return lambda directory: edit_config(directory, quantization_config=fields)


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda d: (d / "config.json").unlink(), "no config.json; expected a model saved with save_pretrained"),
        (lambda d: (d / "model.safetensors").unlink(), "no weights; expected model.safetensors"),
        (pickle_weights, "only pickle weights (pytorch_model.bin)"),
        (lambda d: edit_config(d, num_hidden_layers=3), "num_hidden_layers 3, expected 2"),
        (lambda d: edit_config(d, tie_word_embeddings=False), "tie_word_embeddings False, expected True"),
        (lambda d: edit_config(d, rope_parameters={"rope_type": "default", "rope_theta": 5e5}), "rope_parameters"),
        (lambda d: edit_config(d, model_type="mistral", architectures=[]), "model_type mistral, expected llama"),
        (lambda d: edit_config(d, hidden_act="gelu"), "hidden_act gelu, expected silu"),
        (lambda d: (d / "tokenizer.json").write_text("{}"), "no tokenizer that transformers can load"),
        (
            lambda d: edit_tokenizer(d, lambda rules: rules.update(padding={})),
            "no tokenizer that transformers can load",
        ),
        (say_lower, "another tokenizer than the baseline's: '"),
        (lambda d: edit_config(d, rms_norm_eps=1e-5), "rms_norm_eps 1e-05, expected 1e-06"),
        (quantized(quant_method="auto-round", bits=4), "`pip install 'auto-round>=0.5'`"),
        (quantized(quant_method="gptq", bits=4), "install it with `pip install optimum gptqmodel`"),
        (quantized(quant_method="mine"), "Unknown quantization type, got mine"),
        (quantized(bits=4), "names no quant_method"),
    ],
)
def test_what_is_refused_before_anything_is_planned(edit: Edit, says: str, tiny_llama: Path, tiny_copy: Path) -> None:
    edit(tiny_copy)
    assert says in refusal(tiny_llama, tiny_copy)


def test_types_quantization_and_what_changes_no_answer_are_let_in(tiny_llama: Path, tiny_copy: Path) -> None:
    edit_config(tiny_copy, dtype="float16", transformers_version="4.0", use_cache=False, rms_norm_eps=1.0000000001e-06)
    padding: dict[str, object] = {"strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": None}
    padding |= {"pad_id": 0, "pad_type_id": 0, "pad_token": "<|end|>"}
    edit_tokenizer(tiny_copy, lambda rules: rules.update(padding=padding))
    added = find_added({"x": str(tiny_copy)}, tiny_llama, LoadPolicy())
    assert added["x"].same_rules
    assert added["x"].directory.is_absolute()


def test_another_end_and_another_chat_template_are_refused(tiny_llama: Path, tiny_copy: Path) -> None:
    path = tiny_copy / "tokenizer_config.json"
    (tiny_copy / "chat_template.jinja").write_text("{{ messages[0].content }}")
    assert "another chat template" in refusal(tiny_llama, tiny_copy, chat_template=True)
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token": "<|start|>"}))
    assert "eos_token_id 0, expected 1" in refusal(tiny_llama, tiny_copy)


class NoPackage:
    """A quantizer whose library is not installed, as transformers' own fail: at import, or when asked."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def from_config(self, settings: object, *, pre_quantized: bool) -> "NoPackage":
        assert pre_quantized
        assert not logging.getLogger("torchao.kernel").isEnabledFor(logging.WARNING), "what it tells at its import"
        return self

    def validate_environment(self, **options: object) -> None:
        assert options["device_map"] == {"": "cpu"}
        raise self.error


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (
            ModuleNotFoundError("No module named 'compressed_tensors'", name="compressed_tensors.compressors"),
            "lacks; install it with `pip install compressed-tensors`",
        ),
        (
            ImportError("Loading it requires torchao>=0.15\n(`pip install -U torchao>=0.15`)"),
            "lacks; install it with `pip install -U 'torchao>=0.15'`",
        ),
        (ImportError("It requires\na newer Python"), "can't be loaded on cpu: It requires a newer Python"),
        (RuntimeError("GPU is required to run it"), "can't be loaded on cpu: GPU is required to run it"),
    ],
)
def test_what_a_format_needs_is_one_line(
    error: Exception, says: str, tiny_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantized(quant_method="torchao")(tiny_copy)
    monkeypatch.setattr("transformers.quantizers.auto.AutoHfQuantizer", NoPackage(error))
    with pytest.raises(UserError) as caught:
        require_format(tiny_copy, "cpu")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.fixture
def two_tokenizers(tiny_llama: Path, tiny_copy: Path) -> "Callable[[], list[PreTrainedTokenizerBase]]":
    from bitladder.checkpoint.loading import load_tokenizer

    return lambda: [load_tokenizer(directory) for directory in (tiny_llama, tiny_copy)]


def test_probes_are_a_thousand_of_every_kind() -> None:
    texts = probe_texts()
    assert len(texts) == PROBES == 1000
    assert texts == probe_texts()
    together = "".join(texts)
    for part in ("quick", "42", "def", "é", "数字", "😀", "<|im_start|>", "    ", "\t", "\r\n"):
        assert part in together


def test_a_difference_is_shown_with_its_place(
    tiny_copy: Path, two_tokenizers: "Callable[[], list[PreTrainedTokenizerBase]]"
) -> None:
    from transformers import PreTrainedTokenizerFast

    ours, theirs = two_tokenizers()
    assert same_rules(ours, theirs)
    require_same_tokens(ours, theirs, probe_texts())
    assert isinstance(theirs, PreTrainedTokenizerFast)
    theirs.add_tokens(["brown fox"])
    assert not same_rules(ours, theirs)
    with pytest.raises(
        UserError, match=r"'the brown fox' gives token ids [0-9, ]+, expected [0-9, ]+ \(at position \d+\)"
    ):
        require_same_tokens(ours, theirs, ["the quick fox", "the brown fox", "a brown fox"])
    with pytest.raises(UserError, match="…' gives token ids no more, expected"):
        require_same_tokens(ours, lambda texts, **_: {"input_ids": [[] for _ in texts]}, ["long " * 20])  # type: ignore[arg-type]


def test_a_difference_in_a_prompt_of_the_study_alone_is_refused(
    tiny_llama: Path, tiny_copy: Path, tasks: Path, tmp_path: Path
) -> None:
    """Where the rules differ and no probe does, the study's own prompts are tried, and only then."""
    add = {"other": str(tiny_copy)}
    settings = settings_for(tiny_llama, tasks, add=add)
    edit_tokenizer(tiny_copy, replace_text("left 3", "right 3"))
    with pytest.raises(UserError, match=r"--add other: .*'left 3\?.* gives token ids"):
        prepare(settings, Store(tmp_path / "out"))
    edit_tokenizer(tiny_copy, replace_text("zzzzz", "y"))
    assert prepare(settings, Store(tmp_path / "out")).added == {"other": tiny_copy}
    same = find_added({"same": str(tiny_llama)}, tiny_llama, LoadPolicy())
    require_same_prompts(tiny_llama, same, map(pytest.fail, ["no text needs to be tried"]), LoadPolicy())


@pytest.fixture(scope="module")
def bnb_checkpoint(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What plain transformers writes with bitsandbytes: NF4 with products in FP16, in no rung of the ladder."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    directory = tmp_path_factory.mktemp("ready") / "nf4-fp16"
    settings = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float16
    )
    AutoModelForCausalLM.from_pretrained(
        tiny_llama, quantization_config=settings, dtype=torch.float16, device_map={"": "cpu"}
    ).save_pretrained(directory)
    AutoTokenizer.from_pretrained(tiny_llama).save_pretrained(directory)
    return directory


class Sent:
    """The worker's way back to its parent, kept."""

    def __init__(self) -> None:
        self.messages: list[Record] = []

    def send(self, message: Record) -> None:
        self.messages.append(message)

    def progress(self, done: int, total: int) -> None:
        assert done <= total


def work(job: Job) -> list[Record]:
    """What a worker sends of a job, done here."""
    sent = Sent()
    worker._PHASES[job.phase](job, sent)  # type: ignore[arg-type]
    return sent.messages


def audited(directory: Path) -> RungRecord:
    """What a worker says of a ready checkpoint."""
    (message,) = work(job_for(directory, phase="audit", rung="x"))
    assert isinstance(message, RungMade)
    return message.record


class WorkerHere:
    """A study's worker, in this process."""

    ended = None

    def __init__(self, server: ForkServer, job: Job, log: Path, timeout_s: float) -> None:
        self.job = job

    def messages(self) -> list[Record]:
        return work(self.job)


@pytest.fixture
def workers_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitladder.study.workers.Worker", WorkerHere)
    monkeypatch.setattr(ForkServer, "start", lambda server: None)
    monkeypatch.setattr(Workers, "_executor_of", lambda workers, phase: workers.executor)


@pytest.mark.slow
@pytest.mark.usefixtures("workers_here")
def test_study_from_audit_to_report(tiny_llama: Path, bnb_checkpoint: Path, tasks: Path, tmp_path: Path) -> None:
    out, theirs = tmp_path / "out", tmp_path / "theirs"
    shutil.copytree(bnb_checkpoint, theirs)
    broken = Path(shutil.copytree(bnb_checkpoint, tmp_path / "broken"))
    edit_config(broken, quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True})
    add = {"theirs": str(theirs), "broken": str(broken)}
    settings = settings_for(tiny_llama, tasks, add=add, only="performance")
    first = Counting()
    results = run_study(settings, out, first)

    assert first.made == list(results.rungs) == ["bf16", "theirs", "broken"]
    assert {name: rung.status for name, rung in results.rungs.items()} == {
        "bf16": "ok",
        "theirs": "ok",
        "broken": "refused",
    }
    assert [(record.rung, record.status) for record in results.records] == [("bf16", "ok"), ("theirs", "ok")]
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["bf16"], "the others are read where they lie"
    record = results.rungs["theirs"]
    assert record.manifest is None
    assert record.audit is not None
    assert record.content_hash == record.audit.content_hash
    assert record.source == results.study.added["theirs"]

    summary = summarize(results)
    assert [rung.title for rung in summary.rungs] == ["BF16", "NF4 (bnb-4bit)", "NF4 (bnb-4bit)"]
    assert [verdict.rung for verdict in recommend(summary).verdicts] == list(results.rungs)
    page = to_markdown(compose(results, summary, recommend(summary)))
    assert "NF4 (bnb-4bit)" in page
    assert record.source is not None
    assert f"theirs: {theirs} (files {record.source.content_hash[:12]})" in page

    edit_weights(theirs, scale_first_absmax)
    again = StudyRun(prepare(settings, Store(out)), Store(out), first, ForkServer("", None, with_gpu=False))
    known = [name for name in results.rungs if again.missing.rungs[name] is not None]
    assert known == ["bf16"], "bytes changed; what was refused is audited again, which costs little"
    assert audited(theirs).content_hash != record.content_hash

    merged = merge_results([pack(out, tmp_path / "out.tar.gz")], tmp_path / "merged")
    assert merged.study.rungs == results.study.rungs
    assert len(merged.records) == len(results.records) == 2
    assert summarize(load_results(tmp_path / "merged")).rungs == summarize(results).rungs


def scale_first_absmax(tensors: "dict[str, torch.Tensor]") -> None:
    name = next(name for name in sorted(tensors) if name.endswith(".absmax"))
    tensors[name] *= 1.5


def test_one_that_does_not_load_is_an_outcome(tiny_copy: Path) -> None:
    """A format that passed transformers' check, and whose library then refuses."""
    quantized(quant_method="gptq", bits=4)(tiny_copy)
    edit_weights(tiny_copy, pack_layers)
    record = audited(tiny_copy)
    assert record.audit is not None
    assert record.audit.passed
    assert record.status == "failed"
    assert "install it with `pip install optimum gptqmodel`" in (record.reason or "")


def pack_layers(tensors: "dict[str, torch.Tensor]") -> None:
    """Name the linear layers' tensors as GPTQ does."""
    import torch

    for name in [name for name in tensors if "proj" in name]:
        weight = tensors.pop(name)
        module = name.removesuffix(".weight")
        tensors[f"{module}.qweight"] = torch.zeros(weight.shape[1] // 8, weight.shape[0], dtype=torch.int32)
        tensors[f"{module}.scales"] = torch.ones(1, weight.shape[0], dtype=torch.float16)


def test_ours_under_another_name_is_known_for_what_it_is(made_rungs: CopyRung) -> None:
    record = audited(made_rungs("nf4"))
    assert (record.rung, record.status) == ("x", "ok")
    assert record.manifest is not None
    assert ready_title("x", record.audit) == "INT4 (NF4)"


def test_a_dry_run_guesses_no_time_of_an_unknown_format(
    tiny_llama: Path, bnb_checkpoint: Path, tasks: Path, tmp_path: Path
) -> None:
    prepared = prepare(settings_for(tiny_llama, tasks, add={"theirs": str(bnb_checkpoint)}), Store(tmp_path / "out"))
    ladder, ready = estimate_study(prepared, overhead_bytes={"plain": 1000, "llm.int8": 1000, "bnb-4bit": 1000})
    assert ladder.total_s is not None
    assert (ready.rung, ready.disk_bytes, ready.accuracy_s, ready.total_s) == ("theirs", 0, None, None)
    assert ready.peak_memory_bytes is not None


def test_the_plan_says_which_margins_its_documents_resolve(
    tiny_llama: Path,
    bnb_checkpoint: Path,
    tasks: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ForkServer, "start", lambda server: None)
    monkeypatch.setattr(dry_run, "measure_overhead", lambda *_: {})
    settings = settings_for(tiny_llama, tasks, add={"theirs": str(bnb_checkpoint)})
    print_plan(settings, tmp_path / "out", json_output=True)
    plan = json.loads(capsys.readouterr().out)
    margins = [one["resolvable_margin"] for one in plan["resolutions"]]
    assert margins == sorted(margins) and margins[0] > 0.05  # a dozen documents resolve little
    assert (plan["margin_points"], plan["resolutions"][2]["changed_share"]) == (1.0, 0.05)
    assert (plan["resolutions"][2]["documents"], plan["resolutions"][2]["documents_many_changes"]) == (4020, 3924)
    print_plan(settings, tmp_path / "out", json_output=False)
    shown = " ".join(capsys.readouterr().out.split())
    assert "rungs equal to the baseline, 1 judged together, with 80% power" in shown and "4,020" in shown
    with pytest.raises(UserError, match=r"holds .* and no study; name a new folder"):
        print_plan(settings, tiny_llama, json_output=False)


@pytest.mark.parametrize(
    ("pairs", "says"),
    [
        (["a"], "found 'a', expected NAME=REPO_OR_DIR"),
        (["=b"], "expected NAME=REPO_OR_DIR"),
        (["a=b", "a=c"], "'a' stands more than once"),
    ],
)
def test_bad_flags(pairs: list[str], says: str) -> None:
    with pytest.raises(UserError, match=says):
        _added(pairs, "--add")


@pytest.mark.parametrize(
    ("name", "says"),
    [("nf4", "'nf4' is a rung of the ladder"), ("../x", r"found the name '../x'; expected letters"), ("", "name ''")],
)
def test_bad_names(name: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        load_command(None, {"model": "m", "add": {name: "somewhere"}})


def test_flags_and_file_mean_the_same(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text("model: m\nadd:\n  fp8: org/name=x\n  b.1: ./here\n")
    _, settings = load_command(tmp_path / "study.yaml", {})
    assert settings.add == _added(["fp8=org/name=x", "b.1=./here"], "--add") == {"fp8": "org/name=x", "b.1": "./here"}


def test_another_model_of_the_same_architecture_has_other_shapes(
    tiny_llama: Path, make_tiny_llama: MakeTinyLlama, tmp_path: Path
) -> None:
    wider = make_tiny_llama(tmp_path / "wider", hidden_size=128)
    assert "hidden_size 128, expected 64" in refusal(tiny_llama, wider)


@pytest.mark.parametrize(
    ("stated", "bits", "inputs"),
    [
        ({"default": {"_type": "IntxWeightOnlyConfig", "_data": {"weight_dtype": {"_data": "int4"}}}}, "INT4", None),
        (
            {"default": {"_type": "Float8WeightOnlyConfig", "_data": {"weight_dtype": {"_data": "float8_e4m3fn"}}}},
            "FP8",
            None,
        ),
        ({"default": {"_type": "Int8DynamicActivationInt4WeightConfig", "_data": {"group_size": 32}}}, "INT4", "INT8"),
        ("int4_weight_only", "INT4", None),
        ("int8_dynamic_activation_int8_weight", "INT8", "INT8"),
        ({"default": {"_type": "AutoConfig"}}, "torchao", None),
        ({"default": None}, "torchao", None),
    ],
)
def test_torchao_settings_say_their_bits(stated: object, bits: str, inputs: str | None) -> None:
    plain = find_rung("bf16").scheme
    found = config_scheme({"quantization_config": {"quant_method": "torchao", "quant_type": stated}}, plain)
    assert (found.method, found.stored_type, found.activation_type) == ("other", bits, inputs)


def test_what_it_is_comes_from_the_audit(tiny_copy: Path) -> None:
    quantized(quant_method="compressed-tensors", config_groups={"g": {"weights": {"num_bits": 4, "type": "int"}}})(
        tiny_copy
    )
    edit_weights(tiny_copy, pack_layers)
    assert ready_title("x", audit(tiny_copy, load=False)) == "INT4 (compressed-tensors)"
    assert ready_title("x", None) == "x"


class Lines(Counting):
    """What the plan counts, beside what `Counting` keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.plans: list[tuple[int, int]] = []

    def planned(self, measurements: int, finished: int) -> None:
        self.plans.append((measurements, finished))


@pytest.mark.slow
@pytest.mark.usefixtures("workers_here")
def test_the_same_content_is_measured_once_and_told_once(tiny_llama: Path, tasks: Path, tmp_path: Path) -> None:
    """Its record under a second name read as a measurement of its own: 1.0000 [0.50, 2.01] as fast."""
    copies = {name: str(shutil.copytree(tiny_llama, tmp_path / name)) for name in ("same", "again")}
    settings = settings_for(tiny_llama, tasks, add=copies)
    out, first = tmp_path / "out", Lines()
    results = run_study(settings, out, first)
    assert len({rung.content_hash for rung in results.rungs.values()}) == 1
    items = len(results.study.items)
    assert first.plans[-1] == (items, 0)
    assert len(first.measurements) == items, "progress ends at all of all"
    reason = "same content as bf16, not measured"
    assert [line for line in first.warnings if "same content" in line] == [f"same: {reason}", f"again: {reason}"]
    again = Lines()
    run_study(settings, out, again)
    assert (again.plans, again.measurements) == ([(items, items)], []), "what is known makes the plan right at once"

    assert {record.rung for record in results.records} == {"bf16"}
    summary = summarize(load_results(out))
    assert (summary.planned_measurements, summary.missing_measurements) == (items, 0)
    rung = summary.rung("same")
    assert rung is not None
    assert rung.same_as == "bf16"
    assert (rung.failures, rung.missing, rung.scoring) == ((), (), {})
    assert (rung.scenarios[0].metrics, rung.scenarios[0].reason) == ({}, reason)
    assert {task.score.reason for task in rung.tasks} == {reason}
    assert rung.no_divergence_reason == reason
    assert not summary.rungs[0].scenarios[0].ratios

    for limits in (None, Limits(max_drop_points=1.0)):
        found = recommend(summary, limits)
        verdict = next(one for one in found.verdicts if one.rung == "same")
        assert (verdict.outcome, verdict.reasons) == ("unmeasured", (reason,))
        assert "exactly equal" not in found.model_dump_json()
    page = to_markdown(compose(results, summary, recommend(summary)))
    assert "same has the same content as bf16" in page
    assert "1.0000 [" not in page
    tables = (table for section in compose(results, summary, recommend(summary)).sections for table in section.tables)
    rows = [row for table in tables for row in table.rows if table.name == "table3" and row[0].text == "same"]
    assert rows and {cell.reason for cell in rows[0][1:]} == {f"same: {reason}"}
    with pytest.raises(UserError, match="same has bf16's content, so its answers; name bf16"):
        study_answers(results, "same")
    merged = merge_results([pack(out, tmp_path / "out.tar.gz")], tmp_path / "merged")
    assert summarize(merged).rung("same") == rung


def test_the_plan_leaves_out_what_is_known_to_be_the_same(
    tiny_llama: Path, tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(tiny_llama, tmp_path / "same")
    prepared = prepare(settings_for(tiny_llama, tasks, add={"same": str(copy)}), Store(tmp_path / "out"))
    estimates = estimate_study(prepared, overhead_bytes={})
    dry_run.show_plan(prepared.study, estimates, {"plain": 1000}, same={"same": "bf16"})
    shown = capsys.readouterr().out
    assert "1 rung x " in shown and "same: same content as bf16, not measured" in shown
    assert "whose formats were not timed" not in shown

    study = study_of(prepared.study, ["bf16", "nf4"], prepared.study.added)
    sources = prepared.wanted.tasks.sources
    of_one, of_two = plan_resolutions(study, sources, unmeasured=1)[0], plan_resolutions(study, sources)[0]
    assert of_one.resolvable_margin < of_two.resolvable_margin, "which is judged with no other"
