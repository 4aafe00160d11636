"""Names of devices, and which of them a study takes."""

from typing import Any

import pytest

from bitladder.errors import UserError
from bitladder.machine import cards as devices
from bitladder.records import Calibration, Machine
from bitladder.results import device_title, place_key, used_cards
from bitladder.results.machines import Place
from bitladder.study import calibration
from bitladder.study.calibration import WantedDevice
from machines import GIB, make_gpu, make_machine

UUIDS = ("GPU-8d5f01", "GPU-8d5f02", "GPU-77aa03")


@pytest.mark.parametrize(
    ("device", "cards"),
    [("cpu", ()), ("cuda", (0,)), ("cuda:3", (3,)), ("cuda:0,1", (0, 1)), ("cuda:2,0", (2, 0))],
)
def test_cards_of_a_device(device: str, cards: tuple[int, ...]) -> None:
    assert devices.cards_of(device) == cards
    assert devices.torch_devices(device) == (tuple(f"cuda:{card}" for card in cards) or ("cpu",))


def test_one_name_for_one_set_of_cards() -> None:
    assert [devices.device_of(cards) for cards in ((), (1,), (1, 0))] == ["cpu", "cuda:1", "cuda:0,1"]


@pytest.mark.parametrize("device", ["tpu", "cuda:", "cuda:x", "cuda:0,", "cuda:0,0", "cuda:-1", "cpu:0", "CUDA:0"])
def test_what_is_no_device(device: str) -> None:
    with pytest.raises(UserError, match=f"device '{device}'"):
        devices.cards_of(device)


@pytest.mark.parametrize(
    ("sizes", "needed", "limit", "device"),
    [
        ((), 10, None, "cpu"),
        ((100,), 90, None, "cuda:0"),
        ((100,), 91, None, "cuda:0"),
        ((100, 100), 90, None, "cuda:0"),
        ((100, 100), 91, None, "cuda:0,1"),
        ((100, 100), 1000, None, "cuda:0,1"),
        ((50, 100), 80, None, "cuda:1"),
        ((100, 100), 50, 50, "cuda:0,1"),
        ((100, 100), 45, 50, "cuda:0"),
        ((40, 40), 45, 50, "cuda:0,1"),
    ],
)
def test_one_card_where_the_weights_fit_in_it(
    sizes: tuple[int, ...], needed: int, limit: int | None, device: str
) -> None:
    assert devices.choose_device(sizes, needed, limit) == device


@pytest.mark.parametrize(
    ("visible", "cards"),
    [
        (None, (0, 1, 2)),
        ("", ()),
        ("-1", ()),
        ("1", (1,)),
        ("2,0", (2, 0)),
        ("0,7,1", (0,)),
        ("1,1", ()),
        ("GPU-77aa", (2,)),
        ("GPU-8d5f02, GPU-77aa03", (1, 2)),
        ("GPU-8d5f", ()),
        ("0,GPU-77aa", (0, 2)),
    ],
)
def test_visible_cards_in_their_order(visible: str | None, cards: tuple[int, ...]) -> None:
    assert devices.visible_cards(UUIDS, visible) == cards


class Cards:
    """torch with so many cards, and a model whose largest rung takes so many bytes."""

    def __init__(self, patch: pytest.MonkeyPatch, count: int, needed_bytes: int = 0) -> None:
        self.asked = 0
        patch.setattr(calibration, "count_cards", lambda: count)
        patch.setattr("bitladder.machine.cards.count_cards", lambda: count)
        patch.setattr(calibration, "largest_load_bytes", self._needed)
        self._needed_bytes = needed_bytes

    def _needed(self, *_: Any) -> int:
        self.asked += 1
        return self._needed_bytes


def find(wanted: WantedDevice, machine: Machine) -> str:
    return calibration.find_device(wanted, machine, "unread")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wanted", "needed_gib", "device"),
    [
        ("cpu", 1, "cpu"),
        ("auto", 1, "cuda:0"),
        ("auto", 79, "cuda:0,1"),
        ("cuda", 1, "cuda:0"),
        ("cuda:1", 79, "cuda:1"),
        ("cuda:1,0", 1, "cuda:0,1"),
    ],
)
def test_device_of_a_study(wanted: str, needed_gib: int, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cards = Cards(monkeypatch, 2, needed_gib * GIB)
    assert find(WantedDevice(wanted), make_machine(2)) == device
    assert cards.asked == (wanted == "auto")


def test_the_limit_counts_for_the_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    Cards(monkeypatch, 2, GIB)
    assert find(WantedDevice("auto", memory_limit_bytes=GIB), make_machine(2)) == "cuda:0,1"


def test_nothing_to_choose_needs_no_look_at_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    cards = Cards(monkeypatch, 1, 1000 * GIB)
    assert find(WantedDevice("auto"), make_machine(1)) == "cuda:0"
    assert find(WantedDevice("auto"), make_machine(0)) == "cuda:0", "a card that only torch knows"
    assert cards.asked == 0


@pytest.mark.parametrize(
    ("wanted", "count", "expected"),
    [
        ("cuda:2", 2, "expected auto, cpu, cuda:0, cuda:1, or several of them as cuda:0,1"),
        ("cuda:0,2", 2, "device 'cuda:0,2' is not here"),
        ("cuda:1", 1, "expected auto, cpu, cuda:0$"),
        ("cuda:0", 0, "expected auto, cpu$"),
    ],
)
def test_a_card_that_is_not_here(wanted: str, count: int, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Cards(monkeypatch, count)
    with pytest.raises(UserError, match=expected):
        find(WantedDevice(wanted), make_machine(count))


@pytest.mark.parametrize(
    ("wanted", "stored", "needed_gib", "device"),
    [
        ("auto", "cuda:0", 1, "cuda:0"),
        ("auto", "cuda:0", 79, "cuda:0,1"),
        ("auto", "cuda:0,1", 1, "cuda:0"),
        ("auto", "cuda:1", 1, "cuda:0"),
        ("cuda:1,0", "cuda:0,1", 1, "cuda:0,1"),
        ("cuda:1", "cuda:1", 1, "cuda:1"),
    ],
)
def test_a_second_run_chooses_anew(
    wanted: str, stored: str, needed_gib: int, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not what was stored decides, but what the same settings would have chosen at first; timed layers are kept."""
    machine = make_machine(2)
    Cards(monkeypatch, 2, needed_gib * GIB)
    monkeypatch.setattr(calibration, "describe_machine", lambda: machine)
    known = Calibration(device=stored, threads=None, max_batch_cap=None, machine=machine)
    found = calibration.calibrate(WantedDevice(wanted), "unread", known)  # type: ignore[arg-type]
    assert found.device == device


def test_used_cards_are_named() -> None:
    machine = make_machine(2).model_copy(update={"gpus": (make_gpu("H100"), make_gpu("H100"), make_gpu("T4"))})
    used = [used_cards(machine, device) for device in ("cpu", "cuda:0", "cuda:1", "cuda:2", "cuda:0,1", "cuda:0,1,2")]
    assert used == ["", "H100", "H100", "T4", "2 x H100", "2 x H100, T4"]
    assert used_cards(make_machine(0), "cuda:0") == "GPU"
    assert Place(machine, "cuda:0,1").title == f"2 x H100, {machine.cpu_model}"
    two = Calibration(device="cuda:0,1", threads=None, max_batch_cap=None, machine=machine)
    assert device_title(two) == "cuda:0,1 (2 x H100)"
    assert device_title(two.model_copy(update={"device": "cuda:0"})) == "cuda:0"
    assert Place(machine, "cpu").title == machine.cpu_model
    assert place_key(machine, "cuda:0") == place_key(machine, "cuda:1") != place_key(machine, "cuda:0,1")
