"""Ready checkpoints that a study measures beside its rungs: found, and held to the baseline before anything is planned.

They are read where they lie. Compared figures need the same network and the same token ids.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bitladder.checkpoint.format import require_format
from bitladder.checkpoint.loading import load_tokenizer
from bitladder.checkpoint.network import require_same_network
from bitladder.checkpoint.tokens import probe_texts, require_same_ends, require_same_tokens, same_rules
from bitladder.errors import UserError
from bitladder.models.source import resolve_model
from bitladder.records import LoadPolicy, Source


@dataclass(frozen=True)
class Added:
    """A checkpoint that may be measured beside the baseline."""

    source: Source
    directory: Path
    same_rules: bool
    """whether its tokenizer is the baseline's, so that no prompt needs to be tried"""


def find_added(
    sources: Mapping[str, str],
    baseline: Path,
    policy: LoadPolicy,
    *,
    chat_template: bool = False,
    outline: Path | None = None,
) -> dict[str, Added]:
    """The checkpoints by name, in order; ``outline`` as `resolve_model` takes it.

    Raises UserError, naming the checkpoint, for one that isn't there, has no SafeTensors, is another network than the
    model in ``baseline``, tokenizes the probes in another way, or has a format that can't be loaded on the policy's
    device, and where texts are to be in a chat template that isn't the baseline's.
    """
    found = {}
    for name, source in sources.items():
        with _naming(name):
            model = resolve_model(source, outline=outline)
            require_same_network(baseline, model.directory, policy)
            require_format(model.directory, policy.device)
            ours, theirs = (load_tokenizer(place, policy) for place in (baseline, model.directory))
            same = same_rules(ours, theirs)
            if not same:
                require_same_tokens(ours, theirs, probe_texts())
            require_same_ends(ours, theirs)
            if chat_template and ours.chat_template != theirs.chat_template:
                raise UserError(
                    "another chat template than the baseline's; leave --chat-template out, or give it the same"
                )
            found[name] = Added(model.source, model.directory.absolute(), same)
    return found


def require_same_prompts(baseline: Path, added: Mapping[str, Added], texts: Iterable[str], policy: LoadPolicy) -> None:
    """Raise UserError where a checkpoint gives other token ids than the baseline on a text of the study.

    ``texts`` are read only where a tokenizer isn't the baseline's own.
    """
    others = {name: one for name, one in added.items() if not one.same_rules}
    if not others:
        return
    distinct = list(dict.fromkeys(texts))
    for name, one in others.items():
        with _naming(name):
            ours, theirs = (load_tokenizer(place, policy) for place in (baseline, one.directory))
            require_same_tokens(ours, theirs, distinct)


@contextmanager
def _naming(name: str) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        raise UserError(f"--add {name}: {error}") from None
