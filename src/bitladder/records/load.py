"""How a checkpoint and the tasks are loaded: what everything gets that loads one, instead of all settings."""

from bitladder.records.base import Record


class LoadPolicy(Record):
    """Where a model goes, and what of it may run."""

    device: str = "cpu"
    """``cpu``, ``cuda:0``, or ``cuda:0,1`` for cards that share the model"""
    trust_remote_code: bool = False
    """whether Python that comes with the model may run"""
    memory_limit_bytes: int | None = None
    """of the device, or of each of several cards, as if it had no more; None: all that it has"""


class TaskSources(Record):
    """Which tasks there are, and where their data come from."""

    requested: tuple[str, ...] = ()
    """names, groups or folders of YAML; without any a suite names them"""
    datasets: str | None = None
    """mirror in Hub layout; None: the Hub or its cache"""
    num_fewshot: int | None = None
    """examples a prompt; None: as each task says"""
    seed: int
    trust_remote_code: bool = False
    """whether Python that comes with the user's own tasks may run"""
