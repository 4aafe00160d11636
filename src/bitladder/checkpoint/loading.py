"""Loading a checkpoint as it is stored: nothing is quantized, cast or filled in here."""

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitladder.checkpoint.config import GENERATION_CONFIG, read_config, read_generation_config, wrong_value
from bitladder.checkpoint.scheme import config_scheme, found_scheme
from bitladder.checkpoint.tensors import read_tensors
from bitladder.errors import (
    BrokenFileError,
    DoesNotFitError,
    NotCausalError,
    UnknownNameError,
    UserError,
    describe_machine_error,
)
from bitladder.files import naming
from bitladder.machine.cards import (
    NO_ROOM,
    cards_of,
    count_cards,
    device_of,
    no_room,
    placement_options,
    require_placed,
    require_usable,
    torch_devices,
)
from bitladder.machine.host import available_memory_bytes, describe_gpus, memory_bytes
from bitladder.machine.libraries import forbid_hub_kernels
from bitladder.methods import METHODS, method_of
from bitladder.records import LoadPolicy
from bitladder.text.words import first_line
from bitladder.units import format_bytes

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

_TALKATIVE = ("bitsandbytes", "torchao", "torch.utils._pytree")
"""loggers: bitsandbytes' of every int8 layer's casts and of what it would like to have installed, torchao's of kernels
for other devices, and torch's of torchao"""

_EXPECTED = "a causal language model, one that says after each token what comes next"
_OTHER_KINDS = {
    "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING": "a vision-language model",
    "MODEL_FOR_MULTIMODAL_LM_MAPPING": "a multimodal model",
    "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING": "an encoder with a decoder",
    "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING": "a speech model",
    "MODEL_FOR_MASKED_LM_MAPPING": "a masked language model",
    "MODEL_FOR_TEXT_TO_WAVEFORM_MAPPING": "a speech model",
    "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING": "an image model",
    "MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING": "an audio model",
    "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING": "a classifier",
}
"""transformers' mappings, and what is in them in words"""
_SHOWN_CHARACTERS = 200
_DTYPES = ("bfloat16", "float16", "float32", "float64")
"""torch's that a model computes in"""
REFUSALS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""what transformers raises for a file with impossible values; it doesn't check them all"""


def load_model(directory: Path, policy: LoadPolicy = LoadPolicy()) -> "PreTrainedModel":
    """The checkpoint's model on the policy's device, in evaluation mode and with the types it is stored with.

    Over several cards (``cuda:0,1``) accelerate spreads the layers, with at most the policy's limit on each; the model
    takes its input and gives its answers on the first.

    Raises DoesNotFitError before anything is loaded, BrokenFileError for weights that can't be read or don't fit
    the configuration, UnknownNameError for an unknown architecture, UserError for remote code without leave or an
    unknown device.
    """
    require_memory(directory, policy.device)
    return load_pretrained(directory, policy)


def load_pretrained(directory: Path, policy: LoadPolicy = LoadPolicy(), **options: Any) -> "PreTrainedModel":
    """`load_model` without the look at memory; ``options`` (dtype, quantization_config) go to transformers."""
    import torch

    stored = read_config(directory)
    method = method_of(config_scheme(stored, found_scheme(stored, read_tensors(directory))))
    method.require_packages(str(directory))
    require_generation_config(directory)
    device = policy.device
    use_device(device)
    config = load_config(directory, policy)
    from transformers import AutoModelForCausalLM

    cards = cards_of(device)
    spread = len(cards) > 1
    place = placement_options(cards, policy.memory_limit_bytes) if spread else {"device_map": {"": device}}
    with nullcontext() if method.foreign else naming_config(directory):  # others' libraries fail in their ways
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                directory,
                config=config,
                trust_remote_code=policy.trust_remote_code,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they come back in info, and are refused below
                **place,
                **options,
            )
        except torch.OutOfMemoryError as error:
            raise DoesNotFitError(f"{directory}: out of memory while loading to {device} ({error})") from None
        except ValueError as error:
            if not spread or NO_ROOM not in str(error):
                raise
            raise no_room(directory, device, "a part of it would be left over") from None
    model: PreTrainedModel = loaded[0]
    info = loaded[1]
    absent = sorted(info["missing_keys"]) + sorted(str(key) for key in info["mismatched_keys"])
    if absent:
        raise BrokenFileError(
            f"{directory}: {len(absent):,} tensors that config.json asks for are missing or of another shape "
            f"({absent[0]}, …); expected the weights that belong to it"
        )
    if spread:
        require_placed(directory, model, device)
    if model.device.type == "cpu":
        for one in METHODS.values():
            one.prepare_layers(model)
    return model


@contextmanager
def naming_config(directory: Path) -> Iterator[None]:
    """What transformers raises for a configuration with impossible values, as one line that names the file."""
    import torch
    from huggingface_hub.errors import StrictDataclassError

    try:
        yield
    except torch.AcceleratorError:  # the card's fault, or ours
        raise
    except ImportError as error:
        raise UserError(f"{directory}: its architecture needs another package ({first_line(error)})") from None
    except (StrictDataclassError, *REFUSALS) as error:
        raise BrokenFileError(
            f"{directory / 'config.json'}: no model can be built from it ({_one_line(error)}); fetch or make it again"
        ) from None


def load_config(directory: Path, policy: LoadPolicy = LoadPolicy()) -> "PretrainedConfig":
    """transformers' configuration of a causal language model. Raises UnknownNameError for an architecture that it
    doesn't know, BrokenFileError where it can make nothing of the values.

    Without leave for remote code this process does without kernels of the Hub from here on, so this comes before what
    imports them.
    """
    if not policy.trust_remote_code:
        forbid_hub_kernels()
    quiet_libraries()
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

    stored = read_config(directory)
    with naming_config(directory):
        try:
            config: PretrainedConfig = AutoConfig.from_pretrained(directory, trust_remote_code=policy.trust_remote_code)
        except ValueError as error:
            if "trust_remote_code" in str(error):
                raise UserError(
                    f"{directory}: needs Python code that comes with the model, which is not run unasked; "
                    "read it, then give --trust-remote-code"
                ) from None
            if "model type" in str(error) or "model_type" in str(error):
                place, name = directory / "config.json", stored.get("model_type")
                if not isinstance(name, str):
                    raise BrokenFileError(
                        f"{place}: model_type: found {name!r}, expected an architecture's name; fetch or make it again"
                    ) from None
                hint = "correct it, or upgrade transformers"
                raise UnknownNameError(f"architecture in {place}", name, CONFIG_MAPPING, hint) from None
            raise
    _require_dtype(directory, config)
    own_code = stored.get("auto_map")
    has_own_code = isinstance(own_code, dict) and "AutoModelForCausalLM" in own_code
    is_known = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING or has_own_code
    if not is_known or config.is_encoder_decoder:
        kind = "an encoder with a decoder" if is_known else _what_it_is(config)
        raise NotCausalError(f"{directory}: {stored.get('model_type')!r} is {kind}; expected {_EXPECTED}")
    return config


def _require_dtype(directory: Path, config: "PretrainedConfig") -> None:
    """Raise BrokenFileError for a type that no model computes in, in any part of the configuration."""
    import torch

    known = [getattr(torch, name) for name in _DTYPES]
    for part in (config, *(getattr(config, name, None) for name in config.sub_configs)):
        dtype = getattr(part, "dtype", None)
        if dtype is not None and dtype not in known:
            raise BrokenFileError(
                f"{directory / 'config.json'}: dtype: found {str(dtype)[:_SHOWN_CHARACTERS]!r}, expected one of "
                f"{', '.join(_DTYPES)}; fetch or make it again"
            )


def _what_it_is(config: "PretrainedConfig") -> str:
    """The first kind of model that transformers knows such a configuration as, in words."""
    from transformers.models.auto import modeling_auto

    known = (words for name, words in _OTHER_KINDS.items() if type(config) in getattr(modeling_auto, name, {}))
    return next(known, "not a causal language model")


def require_generation_config(directory: Path) -> None:
    """Raise BrokenFileError for a generation_config.json that transformers fails on, or leaves out without a word."""
    fields = read_generation_config(directory)
    if fields is None:
        return
    if wrong := wrong_value(fields):
        raise BrokenFileError(
            f"{directory / GENERATION_CONFIG}: {wrong[:_SHOWN_CHARACTERS]}; fetch or make it again, or delete it"
        )
    from transformers import GenerationConfig

    try:
        GenerationConfig.from_pretrained(directory, local_files_only=True)
    except (OSError, *REFUSALS) as error:
        raise BrokenFileError(
            f"{directory / GENERATION_CONFIG}: can't be used ({_one_line(error)}); fetch or make it again, or delete it"
        ) from None


def load_tokenizer(directory: Path, policy: LoadPolicy = LoadPolicy()) -> "PreTrainedTokenizerBase":
    """The checkpoint's tokenizer, padding on the left, with end-of-sequence where it has no padding token.

    The side is given at load, since one set later isn't saved. Raises UserError where there is no tokenizer.
    """
    from transformers import AutoTokenizer

    try:
        with naming(directory):
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                directory, padding_side="left", trust_remote_code=policy.trust_remote_code, local_files_only=True
            )
    except Exception as error:
        # a bare one is all that the tokenizers library says of a file that it can't read
        is_refusal = isinstance(error, (OSError, *REFUSALS)) or type(error) is Exception
        if not is_refusal or (isinstance(error, OSError) and describe_machine_error(error)):
            raise
        raise UserError(
            f"{directory}: no tokenizer that transformers can load ({first_line(error)}); expected tokenizer.json and "
            "tokenizer_config.json as save_pretrained writes them"
        ) from None
    if tokenizer.eos_token_id is None:  # generated answers end there, and texts without a beginning begin with it
        raise UserError(f"{directory}: its tokenizer has no end-of-sequence token; give it one, as eos_token")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def require_tokenizer(directory: Path, policy: LoadPolicy = LoadPolicy()) -> None:
    """Raise UserError for a tokenizer that can't be loaded, or gives token ids that the model's embedding lacks.

    Tokens that were added to a tokenizer may lack a row, as one for images in a model of texts does, where nothing but
    the token's own text gives them: neither the tokenizer by itself nor its chat template.
    """
    config = load_config(directory, policy).get_text_config()
    tokenizer = load_tokenizer(directory, policy)
    rows = getattr(config, "vocab_size", None)
    if not isinstance(rows, int):
        return
    vocabulary = tokenizer.get_vocab()
    beyond = {token: number for token, number in vocabulary.items() if number >= rows}
    added = tokenizer.get_added_vocab()
    ends = {tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token}
    template = str(tokenizer.chat_template or "")
    given = [token for token in beyond if token not in added or token in ends or token in template]
    if given:
        token = min(given, key=lambda token: vocabulary[token])
        raise UserError(
            f"{directory}: its tokenizer gives token ids that the model has no embedding for: {token!r} is "
            f"{vocabulary[token]:,}, vocab_size {rows:,}; expected the tokenizer that belongs to the model"
        )


def require_chat_template(directory: Path, policy: LoadPolicy = LoadPolicy()) -> None:
    """Raise UserError where the tokenizer has no chat template, or one that fails on a question."""
    from jinja2 import TemplateError

    tokenizer = load_tokenizer(directory, policy)
    if not tokenizer.chat_template:
        raise UserError(f"{directory}: its tokenizer has no chat template; leave --chat-template out")
    try:
        tokenizer.apply_chat_template([{"role": "user", "content": "?"}], tokenize=False, add_generation_prompt=True)
    except (TemplateError, *REFUSALS) as error:
        raise UserError(
            f"{directory}: its chat template can't be used ({_one_line(error)}); mend it, or leave --chat-template out"
        ) from None


def predicted_load_bytes(directory: Path) -> int:
    """Bytes that the weights will take in memory: those of the file, since loading changes no type."""
    return sum(tensor.size_bytes for tensor in read_tensors(directory).values())


def available_bytes(device: str) -> int:
    """Free memory of the device, what torch keeps for this process's next tensors included, of several cards their sum;
    for the CPU what can be had without swapping."""
    if device.startswith("cuda"):
        import torch

        require_device(device)
        kept = (torch.cuda.memory_reserved(card) - torch.cuda.memory_allocated(card) for card in torch_devices(device))
        return sum(int(torch.cuda.mem_get_info(card)[0]) for card in torch_devices(device)) + sum(kept)
    return available_memory_bytes()


def device_bytes(device: str) -> int:
    """All memory of the device, of several cards their sum, whoever uses it."""
    if device.startswith("cuda"):
        import torch

        require_device(device)
        return sum(int(torch.cuda.mem_get_info(card)[1]) for card in torch_devices(device))
    return memory_bytes()


def require_memory(directory: Path, device: str) -> None:
    """Raise DoesNotFitError where the weights, and the largest of them once more in FP32, which a kernel without native
    arithmetic makes in passing, exceed what is free."""
    tensors = read_tensors(directory).values()
    largest = max(math.prod(tensor.shape) * (2 if tensor.dtype == "U8" else 1) for tensor in tensors)
    require_bytes(directory, device, predicted_load_bytes(directory) + 4 * largest)


def require_bytes(what: object, device: str, needed_bytes: int) -> None:
    """Raise DoesNotFitError where the device has fewer free bytes than needed."""
    available = available_bytes(device)
    if needed_bytes > available:
        raise DoesNotFitError(
            f"{what}: needs about {format_bytes(needed_bytes)} on {device}, {format_bytes(available)} are free; "
            "free some, or take another rung, device or a smaller model"
        )


def use_device(device: str) -> None:
    """`require_device`, and let its first card be the one that libraries mean where they name none: what they put on
    another takes memory there that may be someone else's."""
    import torch

    require_device(device)
    if cards := cards_of(device):
        torch.cuda.set_device(cards[0])


def require_device(device: str) -> None:
    """Raise UserError for a device that this machine lacks, or that its torch can't use."""
    cards = cards_of(device)
    if not cards:
        return
    count = count_cards()
    if not count:
        require_usable(describe_gpus())
        raise UserError(f"device {device!r} isn't available to torch; expected cpu, or cuda[:N] with an NVIDIA GPU")
    if max(cards) >= count:
        known = ", ".join(map(device_of, [(card,) for card in range(count)]))
        raise UserError(f"device {device!r} doesn't exist; expected one of {known}, or several as cuda:N,M")


def quiet_libraries() -> None:
    """Silence what the libraries print, some of them when transformers imports them: notices, and progress bars."""
    from transformers.utils import logging as transformers_logging

    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.ERROR)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:_SHOWN_CHARACTERS]}"
