"""Machines with cards that aren't here."""

from bitladder.records import Gpu, Machine

GIB = 1024**3


def make_gpu(name: str = "NVIDIA H100", driver: str | None = "535.104.05") -> Gpu:
    return Gpu(name=name, total_memory_bytes=80 * GIB, compute_capability="9.0", driver=driver)


def make_machine(cards: int) -> Machine:
    return Machine(
        cpu_model="Some CPU",
        cpu_count=2,
        total_memory_bytes=16 * GIB,
        platform="Linux",
        gpus=(make_gpu(),) * cards,
        versions={},
    )
