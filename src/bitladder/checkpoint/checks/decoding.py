"""Whether what decodes packed weights fits them: a library fails on the rest, or computes something else."""

from bitladder.checkpoint.checks.subject import Subject
from bitladder.checkpoint.declared import config_scheme
from bitladder.checkpoint.forward import Loaded
from bitladder.checkpoint.values import bits_of
from bitladder.records import Finding
from bitladder.rungs import method_of
from bitladder.wording import name_some


def check_decoding(subject: Subject, loaded: Loaded | None) -> list[Finding]:
    """Scales, maps and settings of every packed weight against the weight, by the methods that are said and found."""
    schemes = (subject.declared, config_scheme(subject.config, subject.found), subject.found)

    def read(name: str) -> bytes:
        return bits_of(subject.directory, subject.tensors[name]).tobytes()

    methods = dict.fromkeys(map(method_of, schemes))
    problems = {name: problem for method in methods for name, problem in method.undecodable(subject.tensors, read)}
    if not problems:
        return []
    name, problem = next(iter(problems.items()))
    more = f"; nor can {name_some(list(problems)[1:])}" if len(problems) > 1 else ""
    message = f"{name} can't be decoded: {problem}{more}"
    return [Finding(check="decoding", severity="error", message=message, data={"tensors": sorted(problems)})]
