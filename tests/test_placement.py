"""A model over several devices. Without two cards the spread is accelerate's over the CPU and the disk."""

import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bitladder.accuracy.backend.attention import UnsupportedModelError
from bitladder.accuracy.backend.support import require_support
from bitladder.checkpoint import loading, memory
from bitladder.checkpoint.memory import loaded_bytes
from bitladder.errors import DoesNotFitError, UserError
from bitladder.machine import cards as placement
from bitladder.perf.engines.eager import EagerEngine, synchronization
from bitladder.quantization import quantize
from bitladder.records import LoadPolicy
from bitladder.units import MIB
from perf_fakes import make_prompts

GIB = 1024**3


@pytest.mark.parametrize(("limit", "budgets"), [(None, {0: 72, 1: 36}), (50, {0: 45, 1: 36}), (20, {0: 18, 1: 18})])
def test_budget_of_each_card(limit: int | None, budgets: dict[int, int]) -> None:
    assert placement.card_budgets({0: 80, 1: 40}, limit) == budgets


def test_options_share_the_model_among_the_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda card: ((10 + card) * GIB, 80 * GIB))
    options = placement.placement_options((1, 3), 12 * GIB)
    assert options == {"device_map": "balanced", "max_memory": {1: int(9.9 * GIB), 3: int(10.8 * GIB)}}


@pytest.mark.parametrize(
    ("device_map", "found"),
    [
        (None, ["cpu"]),
        ({"": "cuda"}, ["cpu"]),
        ({"a": 0, "b": 1, "c": 1}, ["cuda:0", "cuda:1"]),
        ({"a": 1, "b": "disk"}, ["cuda:1", "meta"]),
        ({"a": "cpu", "b": 0}, ["cpu", "cuda:0"]),
    ],
)
def test_devices_of_a_model(device_map: dict[str, Any] | None, found: list[str]) -> None:
    import torch

    model: Any = SimpleNamespace(device=torch.device("cpu" if len(device_map or {}) < 2 else found[0]))
    if device_map is not None:
        model.hf_device_map = device_map
    assert [str(device) for device in placement.model_devices(model)] == found
    if len(found) > 1:
        inside = set(found) <= {"cuda:0", "cuda:1"}
        if inside:
            placement.require_placed(Path("m"), model, "cuda:0,1")
        else:
            with pytest.raises(DoesNotFitError, match=r"m: does not fit the memory of cuda:0,1 \(a part of it was put"):
                placement.require_placed(Path("m"), model, "cuda:0,1")


@pytest.fixture
def two_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    """``cuda:0,1`` passes for a device; what is asked of torch is answered here."""
    import torch

    monkeypatch.setattr(loading, "count_cards", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda card: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda card: (3 * GIB if card == "cuda:0" else GIB, 80 * GIB))


@pytest.mark.usefixtures("two_cards")
def test_free_memory_is_the_sum(tiny_llama: Path) -> None:
    assert loading.available_bytes("cuda:0,1") == 4 * GIB
    assert loading.available_bytes("cuda:1") == GIB
    loading.require_bytes("m", "cuda:0,1", 4 * GIB)
    with pytest.raises(DoesNotFitError, match=r"on cuda:0,1, 4\.00 GiB are free"):
        loading.require_bytes("m", "cuda:0,1", 4 * GIB + 1)


@pytest.mark.usefixtures("two_cards")
def test_unknown_cards_are_named() -> None:
    loading.require_device("cuda:0,1")
    with pytest.raises(UserError, match=r"'cuda:0,2' doesn't exist; expected one of cuda:0, cuda:1, or several"):
        loading.require_device("cuda:0,2")


@pytest.mark.usefixtures("two_cards")
def test_the_first_card_is_what_libraries_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    for device in ("cuda:1", "cpu", "cuda:0,1"):
        loading.use_device(device)
    assert chosen == [1, 0]
    with pytest.raises(UserError, match="doesn't exist"):
        loading.use_device("cuda:2")


ON_THE_SECOND_CARD = """
import sys
from pathlib import Path
import pynvml
pynvml.nvmlInit()
first = pynvml.nvmlDeviceGetHandleByIndex(0)
before = pynvml.nvmlDeviceGetMemoryInfo(first).used
from bitladder.perf.engines import find_engine
from bitladder.perf.memory import limit_memory
from bitladder.records import LoadPolicy
limit_memory("cuda:1", 8 * 1024**3, ())
find_engine(None).start(Path(sys.argv[1]), LoadPolicy(device="cuda:1")).run(((1, 2, 3),), 4)
print(pynvml.nvmlDeviceGetMemoryInfo(first).used - before)
"""


@pytest.mark.gpu
def test_work_on_one_card_takes_nothing_of_another(tiny_llama: Path) -> None:
    """A context takes half a gigabyte, of a card that someone else may have filled."""
    torch = pytest.importorskip("torch")
    if torch.cuda.device_count() < 2:
        pytest.skip("fewer than two CUDA devices")
    command = [sys.executable, "-c", ON_THE_SECOND_CARD, str(tiny_llama)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(ran.stdout.split()[-1]) < 64 * MIB


@pytest.mark.usefixtures("two_cards")
def test_hardware_of_two_cards_is_the_lesser(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    cards = {"cuda:0": ("H100", 9, 0), "cuda:1": ("T4", 7, 5)}
    monkeypatch.setattr(
        torch.cuda,
        "get_device_properties",
        lambda card: SimpleNamespace(**dict(zip(("name", "major", "minor"), cards[card], strict=True))),
    )
    found = memory.find_hardware("cuda:0,1")
    assert (found.name, found.compute_capability) == ("H100, T4", (7, 5))
    assert memory.find_hardware("cuda:0").compute_capability == (9, 0)


@pytest.mark.usefixtures("two_cards")
def test_what_the_cards_have_no_room_for_is_refused(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def no_room(cards: tuple[int, ...], limit_bytes: int | None) -> dict[str, Any]:
        asked.append((cards, limit_bytes))
        return {"device_map": "balanced", "max_memory": {"cpu": 10}}

    monkeypatch.setattr(loading, "placement_options", no_room)
    with pytest.raises(DoesNotFitError, match=r"does not fit the memory of cuda:0,1 \(a part of it was put on meta\)"):
        loading.load_model(tiny_llama, LoadPolicy(device="cuda:0,1", memory_limit_bytes=7))
    assert asked == [((0, 1), 7)]
    nf4 = quantize(str(tiny_llama), "nf4", out=tmp_path / "nf4").directory
    over = {"device_map": {"model": "cpu", "lm_head": "disk"}}
    monkeypatch.setattr(loading, "placement_options", lambda cards, limit_bytes: over)
    with pytest.raises(DoesNotFitError, match="a part of it would be left over"):
        loading.load_model(nf4, LoadPolicy(device="cuda:0,1"))


@pytest.mark.usefixtures("two_cards")
def test_quantizing_takes_one_card(tiny_llama: Path) -> None:
    with pytest.raises(UserError, match="'cuda:0,1': found several cards; quantizing takes one"):
        quantize(str(tiny_llama), "nf4", device="cuda:0,1")


@pytest.fixture
def spread_llama(make_tiny_llama: Any, tmp_path: Path) -> Any:
    """A model whose first layer is in memory and whose second is on the disk, brought in as it runs."""
    import accelerate

    directory = make_tiny_llama(tmp_path / "model", dtype="float32")
    model = loading.load_model(directory)
    device_map = {"model.layers.1": "disk", "model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.norm": "cpu"}
    device_map |= {"model.rotary_emb": "cpu", "lm_head": "cpu"}
    yield directory, accelerate.dispatch_model(model, device_map, main_device="cpu", offload_dir=str(tmp_path / "off"))
    shutil.rmtree(tmp_path / "off", ignore_errors=True)


def test_a_spread_model_is_scored_by_lm_evals_way(spread_llama: Any) -> None:
    from lm_eval.api.instance import Instance

    from bitladder.accuracy.backend.lm import BitladderLM
    from bitladder.accuracy.huggingface import HuggingFaceModel

    directory, spread = spread_llama
    with pytest.raises(UnsupportedModelError, match="spread over several devices"):
        require_support(spread)
    tokenizer = loading.load_tokenizer(directory)
    asked = [
        Instance(request_type="loglikelihood", doc={}, arguments=(context, " dog"), idx=0, task_name="t")
        for context in ("The quick brown", "A ladder has")
    ]
    ours = BitladderLM(spread, tokenizer, cache_requests=False)
    whole = HuggingFaceModel(loading.load_model(directory), tokenizer, 2)
    found, expected = (lm.loglikelihood(asked, disable_tqdm=True) for lm in (ours, whole))
    assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], rel=1e-5)
    assert ours.remarks == ("scored by lm-eval's hf backend, because it is spread over several devices",)


def test_a_spread_model_generates_the_same(spread_llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    waited: list[str] = []
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda device: waited.append(str(device)))
    directory, spread = spread_llama
    rows = make_prompts().token_ids[:2]
    engine = EagerEngine(spread)
    steps = engine.run(rows, 4)
    assert steps.tokens == EagerEngine(loading.load_model(directory)).run(rows, 4).tokens
    assert waited == ["meta"] * 4, "one wait a step, here for the disk"
    assert engine.launch["device"] == "cpu, meta"


def test_every_stamp_waits_for_all_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    waited: list[str] = []
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda device: waited.append(str(device)))
    for names in (["cpu"], ["cuda:1"], ["cuda:0", "cuda:1"]):
        synchronization([torch.device(name) for name in names])()
    assert waited == ["cuda:1", "cuda:0", "cuda:1"]


def test_hooks_of_a_spread_add_nothing_to_the_weights(tiny_llama: Path) -> None:
    import accelerate

    model = loading.load_model(tiny_llama)
    before = loaded_bytes(model)
    hooked = accelerate.dispatch_model(model, {"": "cpu"}, main_device="cpu", force_hooks=True)
    assert hasattr(hooked, "_hf_hook")
    assert loaded_bytes(hooked) == before > 0
