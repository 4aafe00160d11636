"""lm-eval's generation requests as prompts: tokens, stop strings and limit of each."""

import re
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
_NEUTRAL = {
    "num_beams": 1,
    "num_beam_groups": 1,
    "num_return_sequences": 1,
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "min_length": 0,
    "min_new_tokens": 0,
    "guidance_scale": 1.0,
    "diversity_penalty": 0.0,
    "penalty_alpha": 0.0,
    "remove_invalid_values": False,
    "token_healing": False,
    "use_mtp": False,
}
"""values of a generation configuration's settings that leave a greedy choice as it is, beside None"""
_WITHOUT_EFFECT = re.compile(
    # sampling, which lm-eval turns off
    "do_sample|temperature|top_[kph]|min_p|typical_p|epsilon_cutoff|eta_cutoff"
    # length: lm-eval gives its own
    "|max_length"
    # beams alone
    "|early_stopping|length_penalty"
    # how it is computed or returned
    "|use_cache|.*cache.*|.*compile.*|low_memory|prefill_chunk_size|continuous_batching_config|renormalize_logits"
    "|output_.*|return_.*|(pad|bos|eos|decoder_start)_token_id"
    # drafts, which are kept where they are the model's own choice
    "|.*assistant.*|.*lookbehind|speculation_type|max_matching_ngram_size"
    "|_from_model_config|transformers_version|trust_remote_code"
)
"""settings that are nothing to a greedy choice; all others are taken to change it, those of later versions too"""


def require_greedy(model: "PreTrainedModel", options: Sequence[dict[str, Any]]) -> None:
    """Raise UnsupportedModelError, saying why, where a request or the model's own settings ask for more than greedy."""
    for name, value in model.generation_config.to_dict().items():
        neutral = value is None or value == _NEUTRAL.get(name, ())
        if not neutral and not _WITHOUT_EFFECT.fullmatch(name):
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
