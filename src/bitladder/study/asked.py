"""Who is asked next: the rungs whose verdict the records leave open, stage by stage."""

from dataclasses import dataclass, replace

from bitladder.records import Item
from bitladder.results import place_of
from bitladder.stages import stage_count, stage_item, staged_tasks
from bitladder.store import Store
from bitladder.study.missing import Missing


@dataclass(frozen=True)
class Asked:
    """The stages of a plan, counted from 0; none where each task is asked as a whole."""

    store: Store
    missing: Missing
    place: tuple[str, str]
    """where this study measures, whose records alone decide"""

    @property
    def stages(self) -> int:
        return stage_count(staged_tasks(self.missing.study))

    def by(self, stage: int) -> frozenset[str]:
        """The rungs that a stage asks."""
        from bitladder.summary.answered import rungs_to_ask

        results = self.store.load()
        here = tuple(record for record in results.records if place_of(record) == self.place)
        return rungs_to_ask(replace(results, records=here), stage)

    def items_until(self, stage: int) -> tuple[Item, ...]:
        """Of this stage and of those before, which a rung may lack that was decided for a while."""
        tasks = staged_tasks(self.missing.study)
        parts = (stage_item(task, one) for one in range(stage + 1) for task in tasks)
        return tuple(part for part in parts if part is not None)

    def is_done(self, stage: int, asked: frozenset[str]) -> bool:
        """Whether these rungs have answered all until then."""
        items = self.items_until(stage)
        return not any(self.missing.of(self.missing.rungs[name], items) for name in asked)

    def next(self) -> frozenset[str]:
        """Whom the first stage asks that isn't done."""
        for stage in range(self.stages):
            asked = self.by(stage)
            if not self.is_done(stage, asked):
                return asked
        return frozenset()
