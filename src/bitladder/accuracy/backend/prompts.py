"""lm-eval's generation requests as prompts: tokens, stop strings and limit of each."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bitladder.accuracy.backend.attention import UnsupportedModelError
from bitladder.accuracy.backend.generation import Prompt
from bitladder.accuracy.backend.requests import RequestEncoder
from bitladder.accuracy.backend.stopping import StopStrings
from bitladder.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DEFAULT_NEW_TOKENS = 256
"""lm-eval's own, where a task sets no limit"""
_GREEDY = {"do_sample": (False, None), "temperature": (0, 0.0, None)}
_PLAIN = {
    "num_beams": (None, 1),
    "repetition_penalty": (None, 1.0),
    "no_repeat_ngram_size": (None, 0),
    "min_length": (None, 0),
    "min_new_tokens": (None, 0),
    "bad_words_ids": (None,),
    "suppress_tokens": (None,),
    "begin_suppress_tokens": (None,),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
    "sequence_bias": (None,),
    "guidance_scale": (None, 1.0),
    "exponential_decay_length_penalty": (None,),
}
"""settings of a generation configuration that change a greedy choice, and their values that don't"""


def require_greedy(model: "PreTrainedModel", options: Sequence[dict[str, Any]]) -> None:
    """Raise UnsupportedModelError, saying why, where a request or the model's own settings ask for more than greedy."""
    for name, plain in _PLAIN.items():
        value = getattr(model.generation_config, name, None)
        if value not in plain:
            raise UnsupportedModelError(f"its generation_config has {name} {value}")
    for request in options:
        for name, value in request.items():
            if name not in ("until", "max_gen_toks") and value not in _GREEDY.get(name, ()):
                raise UnsupportedModelError(f"the task generates with {name} {value}")


def make_prompts(
    encoder: RequestEncoder, model: "PreTrainedModel", requests: Sequence[tuple[str, dict[str, Any]]]
) -> list[Prompt]:
    """Prompts of (context, normalized options), cut on the left to leave room for the new tokens.

    Raises UserError for a limit of new tokens that leaves no room for a prompt.
    """
    from lm_eval.models.utils import handle_stop_sequences

    tokenizer: Any = encoder.tokenizer
    own = model.generation_config.eos_token_id
    ends = frozenset({tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])} - {None})
    end_text = tokenizer.decode(tokenizer.eos_token_id)
    by_stops: dict[tuple[str, ...], StopStrings] = {}
    rooms = [encoder.max_length - int(options["max_gen_toks"]) for _, options in requests]
    if rooms and min(rooms) <= 0:
        raise UserError(
            f"no room for a prompt beside the new tokens in a model of {encoder.max_length}; lower the limit"
        )
    prompts = []
    for tokens, (_, options) in zip(encoder.prompts([text for text, _ in requests], rooms), requests, strict=True):
        stops = tuple(handle_stop_sequences(options["until"], eos=end_text))
        if stops not in by_stops:
            by_stops[stops] = StopStrings(tokenizer, stops)
        prompts.append(Prompt(tokens, by_stops[stops], ends, int(options["max_gen_toks"])))
    return prompts
