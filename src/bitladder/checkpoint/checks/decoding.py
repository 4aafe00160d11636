"""Whether what decodes packed weights fits them: a library fails on the rest, or computes something else."""

from bitladder.checkpoint.checks.subject import Subject
from bitladder.checkpoint.forward import Loaded
from bitladder.checkpoint.values import bits_of
from bitladder.records import Finding
from bitladder.rungs import METHODS
from bitladder.wording import name_some


def check_decoding(subject: Subject, loaded: Loaded | None) -> list[Finding]:
    """Scales, maps and settings of every weight that a known method packed, against the weight."""

    def read(name: str) -> bytes:
        return bits_of(subject.directory, subject.tensors[name]).tobytes()

    problems = {
        name: problem for method in METHODS.values() for name, problem in method.undecodable(subject.tensors, read)
    }
    if not problems:
        return []
    name, problem = next(iter(problems.items()))
    more = f"; nor can {name_some(list(problems)[1:])}" if len(problems) > 1 else ""
    message = f"{name} can't be decoded: {problem}{more}"
    return [Finding(check="decoding", severity="error", message=message, data={"tensors": sorted(problems)})]
