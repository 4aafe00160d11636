"""Without a network, what is not cached is said at once."""

import time

import pytest

from bitladder.machine import libraries
from bitladder.machine.libraries import offline_without_network


@pytest.fixture(autouse=True)
def forgotten() -> None:
    libraries._is_reachable.cache_clear()


def test_unreachable_hub_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    started = time.monotonic()
    with pytest.raises(ConnectionError), offline_without_network():
        datasets.load_dataset("org/absent")
    assert time.monotonic() - started < 3
    assert not datasets.config.HF_HUB_OFFLINE, "as it was before"


def test_reachable_hub_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(libraries, "_is_reachable", lambda endpoint: True)
    before = datasets.config.HF_HUB_OFFLINE
    with offline_without_network():
        assert before == datasets.config.HF_HUB_OFFLINE
