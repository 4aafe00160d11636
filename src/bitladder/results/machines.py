"""Which machines measured a study, and what each of them did: no table and no comparison mixes two.

Machine: GPU models and drivers, CPU model, library versions, and whether the CPU, one card or several were measured.
Serial numbers are recorded and never compared, so either card of one model is the same machine, and both together are
another.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from bitladder.errors import UserError
from bitladder.records import (
    Calibration,
    Item,
    Machine,
    MeasurementRecord,
    Rescoring,
    RungRecord,
    Scenario,
    TaskGroup,
)
from bitladder.results import (
    Results,
    answering_machines,
    item_name,
    joined_rungs,
    place_key,
    place_of,
    study_of,
    titles_of,
    used_cards,
)

_FACTS_SHOWN = 2


@dataclass(frozen=True)
class Place:
    """A machine, with the device that was measured, such as ``cpu``, ``cuda:0`` or ``cuda:0,1``."""

    machine: Machine
    device: str

    @property
    def key(self) -> tuple[str, str]:
        return place_key(self.machine, self.device)

    @property
    def title(self) -> str:
        """What was measured, for people; other machines may have the same title, see `place_names`."""
        return ", ".join(filter(None, [used_cards(self.machine, self.device), self.machine.cpu_model]))


def places(results: Results) -> list[Place]:
    """Every machine that left a record, in the order of the studies; the calibrated one where there is no record."""
    calibrations = [part.study.calibration for part in results.parts or (results,)]
    calibrated = [Place(one.machine, one.device) for one in calibrations]
    measured = [Place(record.machine, record.item.device) for record in results.records]
    recorded = {place.key for place in measured}
    found: dict[tuple[str, str], Place] = {}
    for place in [*calibrated, *measured]:
        if place.key in recorded:
            found.setdefault(place.key, place)
    return list(found.values()) or calibrated[:1]


def place_names(found: Sequence[Place]) -> dict[tuple[str, str], str]:
    """Each place's title; where two have the same, with what tells them apart."""
    names = {}
    for place in found:
        alike = [other for other in found if other.title == place.title]
        names[place.key] = place.title + (f" ({_distinction(place, alike)})" if len(alike) > 1 else "")
    return names


def _distinction(place: Place, alike: Sequence[Place]) -> str:
    """The first facts that are not equal among machines with one title; the hash where those leave a doubt."""
    facts = [_facts(other) for other in alike]
    names = [
        name
        for name in dict.fromkeys(name for one in facts for name in one)
        if len({one.get(name) for one in facts}) > 1
    ]
    own = [f"{name} {_facts(place).get(name, 'absent')}" for name in names[:_FACTS_SHOWN]]
    others = [[f"{name} {one.get(name, 'absent')}" for name in names[:_FACTS_SHOWN]] for one in facts]
    return ", ".join(own if others.count(own) == 1 else [*own, place.machine.identity[:8]])


def _facts(place: Place) -> dict[str, str]:
    gpus = place.machine.gpus
    return {
        "device": place.device.partition(":")[0],
        "GPU": " and ".join(gpu.title for gpu in gpus) or "none",
        "driver": " and ".join(dict.fromkeys(gpu.driver or "unknown" for gpu in gpus)) or "none",
        **place.machine.versions,
    }


def performance_places(results: Results) -> list[Place]:
    """The machines with a performance measurement that ended well."""
    measured = {
        place_of(record) for record in results.records if isinstance(record.item, Scenario) and record.status == "ok"
    }
    return [place for place in places(results) if place.key in measured]


def find_place(results: Results, wanted: str | None = None) -> Place:
    """The machine to decide on: the one whose name has ``wanted`` in it, else the only one that measured performance.

    Raises UserError where that is none or several.
    """
    found = performance_places(results) or places(results)[:1]
    names = place_names(places(results))
    known = "; ".join(names[place.key] for place in found)
    if wanted is None:
        if len(found) > 1:
            raise UserError(f"performance was measured on {len(found)} machines; choose one with --machine: {known}")
        return found[0]
    chosen = [place for place in found if names[place.key].lower() == wanted.lower()]
    chosen = chosen or [place for place in found if wanted.lower() in names[place.key].lower()]
    if len(chosen) != 1:
        count = "no machine" if not chosen else f"{len(chosen)} machines"
        raise UserError(f"--machine {wanted!r} names {count}; expected part of the name of one of: {known}")
    return chosen[0]


def default_place(results: Results) -> Place:
    """The machine that a report decides on where nobody chose: the study's own, else the first with performance."""
    found = performance_places(results) or places(results)
    calibration = results.study.calibration
    own = place_key(calibration.machine, calibration.device)
    return next((place for place in found if place.key == own), found[0])


def at_place(results: Results, place: Place) -> Results:
    """What one machine measured; what none has measured stands with the first. Its tables hold no other's figures."""
    known = places(results)
    if len(known) == 1:
        return results
    here = [record for record in results.records if place_of(record) == place.key]
    anywhere = {(record.rung, item_name(record.item)) for record in results.records}
    names = {item_name(record.item) for record in here}
    if place.key == known[0].key:
        names |= {item_name(item) for item in results.study.items} - {name for _, name in anywhere}
    groups = tuple(group for group in results.study.groups if names & set(group.tasks))
    names |= {task for group in groups for task in group.tasks}
    own = {record.rung for record in here} | {results.study.baseline}
    measured = {rung for rung, _ in anywhere}
    rungs = tuple(rung for rung in results.study.rungs if rung in own or rung not in measured)
    return _restricted(results, here, place, rungs=rungs, groups=groups, wanted=names.__contains__)


def to_decide(results: Results, place: Place) -> Results:
    """What a recommendation on one machine compares: its performance, and each task as one machine measured it.

    That machine is the one with the most rungs; of equals ``place`` itself, then the first.
    """
    known = places(results)
    if len(known) == 1:
        return results
    chosen = answering_machines(results, [place.key, *(one.key for one in known)])
    records = [record for record in results.records if place_of(record) == chosen.get(_task_of(record), place.key)]
    here = {item_name(record.item) for record in records}
    anywhere = {item_name(record.item) for record in results.records}
    found = _restricted(
        results,
        records,
        place,
        rungs=results.study.rungs,
        groups=results.study.groups,
        wanted=lambda name: name in chosen or name in here or name not in anywhere,
    )
    return replace(found, measured_on=_origin(found, place, chosen, known))


def _task_of(record: MeasurementRecord) -> str:
    """Its name; of what is scored again the task's, whose answers it is held against."""
    item = record.item
    return item.task.task if isinstance(item, Rescoring) else item_name(item)


def _restricted(
    results: Results,
    records: Iterable[MeasurementRecord],
    place: Place,
    *,
    rungs: tuple[str, ...],
    groups: tuple[TaskGroup, ...],
    wanted: Callable[[str], bool],
) -> Results:
    """Some of the records, with the plan that they belong to: one item a name, as it was measured."""
    records = tuple(records)
    items: dict[str, Item] = {item_name(record.item): record.item for record in records}
    planned = {item_name(item): items.get(item_name(item), item) for item in results.study.items}
    study = results.study
    study = study_of(
        study,
        (rung for rung in study.settings.rungs if rung in rungs),
        {name: source for name, source in study.added.items() if name in rungs},
    ).model_copy(
        update={
            "calibration": _calibration_at(results, place),
            "groups": groups,
            "items": tuple(item for name, item in planned.items() if wanted(name)),
        }
    )
    anywhere = {(record.rung, item_name(record.item)) for record in results.records}
    here = {(record.rung, item_name(record.item)) for record in records}
    return Results(
        directory=results.directory,
        study=study,
        rungs=_rungs_at(results, place),
        records=records,
        elsewhere=frozenset(anywhere - here),
        unplanned=results.unplanned,
    )


def _calibration_at(results: Results, place: Place) -> Calibration:
    """Of the study that measured there, with that machine."""
    calibrations = [part.study.calibration for part in results.parts or (results,)]
    own = next((one for one in calibrations if place_key(one.machine, one.device) == place.key), None)
    return own or results.study.calibration.model_copy(update={"machine": place.machine, "device": place.device})


def _rungs_at(results: Results, place: Place) -> dict[str, RungRecord]:
    """Each rung as the studies of this machine made and audited it; one that they did not have, as another did."""
    parts = results.parts or (results,)
    own = [part for part in parts if place.key in {at.key for at in places(part)}]
    return joined_rungs(parts) | joined_rungs(own)


def _origin(results: Results, place: Place, chosen: dict[str, tuple[str, str]], known: Sequence[Place]) -> str:
    """Where the compared figures are from, in one phrase."""
    names = place_names(known)
    tasks: dict[str, list[str]] = {}
    measured = {item_name(record.item) for record in results.records}
    for task, key in chosen.items():
        if task in measured:
            tasks.setdefault(names[key], []).append(task)
    if len(tasks) < 2:
        accuracy = [f"accuracy on {name}" for name in tasks]
    else:
        titles = {name: titles_of(found, results.study.groups) for name, found in tasks.items()}
        accuracy = [f"{', '.join(found)} on {name}" for name, found in titles.items()]
    timed = any(isinstance(record.item, Scenario) for record in results.records)
    return "; ".join([*([f"performance on {names[place.key]}"] if timed else []), *accuracy])
