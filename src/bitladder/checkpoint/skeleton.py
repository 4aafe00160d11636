"""The network that config.json describes, built without memory.

What has to be known of a family is asked of its network and not of its configuration: configurations call one thing by
many names, leave it null, nest it, or let it vary from layer to layer.
"""

import copy
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitladder.checkpoint.loading import REFUSALS, load_config, naming_config
from bitladder.errors import NotCausalError
from bitladder.records import LoadPolicy

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel

FORWARD_ERRORS: tuple[type[Exception], ...] = REFUSALS
"""what a model's code raises in a forward that it wasn't written for"""

_WITHOUT_MASK = ("cpmant", "xlm", "xlnet")
"""families that transformers lists among its causal ones although their forward hides nothing that comes later"""
_NO_MATRIX = re.compile(r"^(A_log|D|query|scale|static_weight)$|bias$|pos|emb")
"""names of bare parameters of two axes or more that nothing is multiplied by as a matrix: decays, biases, scales of
heads, taps of a convolution, positions"""
_WATCHED_TOKENS = 8
_MOVED = 1e-4
"""of the logits' standard deviation: FP32 rounds by a thousandth of this, a token that is seen moves them by a
hundred times it"""
_CACHES = ("cache", "past_key_values", "cache_params", "state", "mems", "past_buckets_states")
"""what an output calls the state that it hands to the next step"""


def build_skeleton(directory: Path, policy: LoadPolicy = LoadPolicy()) -> "PreTrainedModel":
    """The config's model on torch's meta device, in BF16, as it is before a quantizer replaces layers.

    Raises UserError as `load_config`, and where the family needs another package; BrokenFileError for a config that no
    model can be built from.
    """
    import torch

    config = load_config(directory, policy)
    from transformers import AutoModelForCausalLM

    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with naming_config(directory), torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            config, trust_remote_code=policy.trust_remote_code, dtype=torch.bfloat16
        )
    model.eval()  # type: ignore[no-untyped-call]
    by_config = _leaves_out_mask(model)
    if by_config or model.config.model_type in _WITHOUT_MASK:
        why = " (its config has no is_decoder true)" if by_config else ""
        raise NotCausalError(
            f"{directory}: {model.config.model_type!r} sees what comes after a token, as an encoder does{why}; "
            "expected a causal language model"
        )
    return model


def _leaves_out_mask(model: "PreTrainedModel") -> bool:
    """Whether there is no causal mask where the config has ``is_decoder`` false, which some families' code asks it for,
    and some keeps for other things: a network of one layer and few tokens with random weights tells.

    Of a network that can't be made so small nothing is known yet; the audit's own forward tells.
    """
    import torch
    from huggingface_hub.errors import StrictDataclassError

    if getattr(model.config, "is_decoder", None) is not False or "is_decoder" not in _source(model):
        return False
    try:
        small = _small(model)
        token_ids = torch.arange(1, 1 + _WATCHED_TOKENS)[None] % vocabulary_size(small)
        other = token_ids.clone()
        other[0, -1] = 0
        with torch.inference_mode():
            one, two = (small(input_ids=ids, attention_mask=torch.ones_like(ids)).logits for ids in (token_ids, other))
    except (StrictDataclassError, *REFUSALS):
        return False
    first = slice(0, _WATCHED_TOKENS // 2)
    return bool((one - two)[0, first].abs().max() > _MOVED * one[0, first].std())


def _small(model: "PreTrainedModel") -> "PreTrainedModel":
    """The model with one layer, a vocabulary that has its special tokens, and random weights in FP32."""
    import torch

    config = copy.deepcopy(model.config)
    special = (getattr(config, name, None) for name in ("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id"))
    most = max((number for number in special if isinstance(number, int)), default=0)
    config.num_hidden_layers = 1
    config.vocab_size = min(vocabulary_size(model), 1 + max(most, _WATCHED_TOKENS))
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(0)
        small: PreTrainedModel = type(model)(config)
    small.eval()  # type: ignore[no-untyped-call]
    return small


def _source(model: "PreTrainedModel") -> str:
    """The family's code; empty where there is none beside what was compiled of it."""
    try:
        return inspect.getsource(inspect.getmodule(type(model)) or type(model))
    except (OSError, TypeError):
        return ""


def linear_weights(model: "PreTrainedModel") -> dict[str, "Tensor"]:
    """By name the weights of matrix products but the head's: what a rung of fewer bits is expected to hold in them.

    Experts, routers and some projections are no layers but bare parameters, experts of three dimensions too, which
    bitsandbytes leaves as they are (bitsandbytes#1849). What a family keeps in FP32 is left out, such as a state-space
    model's decay.
    """
    import torch
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    head: nn.Module | None = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    in_fp32 = kept_in_fp32(model)
    found = {}
    for module_name, module in model.named_modules():
        if module is head or isinstance(module, nn.modules.conv._ConvNd | nn.Embedding):
            continue
        for name, weight in module.named_parameters(recurse=False):
            whole = f"{module_name}.{name}"
            is_layer = isinstance(module, nn.Linear | Conv1D) and name == "weight"
            is_matrix = is_layer or (weight.ndim > 1 and min(weight.shape[-2:]) > 1 and not _NO_MATRIX.search(name))
            if is_matrix and weight.dtype == torch.bfloat16 and not in_fp32(whole):
                found[whole] = weight
    return found


def kept_in_fp32(model: "PreTrainedModel") -> Callable[[str], bool]:
    """Whether the tensor of a name is left in FP32, or by a quantizer in 16 bits, because the family says so."""
    import torch

    plain = tuple(model._keep_in_fp32_modules or ())
    in_fp32 = fp32_plan(model, torch.bfloat16)
    return lambda name: any(part in plain for part in name.split(".")) or in_fp32(name)


def fp32_plan(model: "PreTrainedModel", dtype: "torch.dtype") -> Callable[[str], bool]:
    """Whether transformers loads the tensor of a name in FP32 where ``dtype`` is asked for."""
    # patterns as it makes and searches them (``build_glob_alternation``)
    patterns = [re.compile(pattern.replace("*", ".*")) for pattern in model._get_dtype_plan(dtype)]
    return lambda name: any(pattern.search(name) for pattern in patterns)


def has_tied_head(model: "PreTrainedModel") -> bool:
    """Whether the layer that makes logits has the embedding's tensor, by transformers' own table of what is shared."""
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    tied = model.all_tied_weights_keys
    names = {f"{name}.weight" for name, module in model.named_modules() if module is head}
    return not names.isdisjoint({*tied.keys(), *tied.values()})


def widest_layer(model: "PreTrainedModel") -> tuple[int, int]:
    """Input and output features of the layer that has the most weights, an expert counted for itself."""
    matrices = [weight.shape[-2:] for weight in linear_weights(model).values()]
    if not matrices:
        width = embedding_width(model)
        return width, 4 * width
    rows, columns = max(matrices, key=lambda shape: shape[0] * shape[1])
    return int(columns), int(rows)


def embedding_width(model: "PreTrainedModel") -> int:
    """Numbers that a token is while it passes from layer to layer."""
    return int(_embedding(model).shape[-1])


def vocabulary_size(model: "PreTrainedModel") -> int:
    """Token ids that the model has an embedding of."""
    return int(_embedding(model).shape[0])


def layer_count(model: "PreTrainedModel") -> int:
    """Length of the longest list of layers, 1 where there is none."""
    from torch.nn import ModuleList

    return max((len(module) for module in model.modules() if isinstance(module, ModuleList)), default=1) or 1


def head_weights(model: "PreTrainedModel") -> int:
    """Number of weights of the layer that makes logits; it may be the embedding."""
    head: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    weight = getattr(head, "weight", None)
    return int((_embedding(model) if weight is None else weight).numel())


def cache_bytes(model: "PreTrainedModel", tokens: int, value_bytes: int = 2) -> int:
    """Bytes of what one row of so many tokens leaves for the next step: keys, values, and states of other kinds.

    From a forward without memory. A family that can't run so - its code looks at values - gets an upper bound: every
    layer's outputs of every token. ``value_bytes``: of the type that the model computes in.
    """
    import torch

    token_ids = torch.zeros((1, tokens), dtype=torch.long, device="meta")
    try:
        with torch.inference_mode():
            output = model(input_ids=token_ids, use_cache=True)
        states = [vars(output).get(name) for name in _CACHES]  # getattr warns of old names
        kept = sum(tensor.nbytes for tensor in _tensors(states, set()))
    except FORWARD_ERRORS:
        kept = 0
    if not kept:
        kept = 2 * tokens * sum(weight.shape[-2] for weight in linear_weights(model).values() if weight.ndim == 2)
    return kept * value_bytes // 2


def _tensors(value: Any, seen: set[int]) -> "Iterator[Tensor]":
    import torch

    if id(value) in seen or isinstance(value, torch.nn.Module | type):
        return
    seen.add(id(value))
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _tensors(one, seen)
    elif isinstance(value, dict) or type(value).__module__.startswith("transformers"):
        for one in list((value if isinstance(value, dict) else vars(value)).values()):
            yield from _tensors(one, seen)


def _embedding(model: "PreTrainedModel") -> "Tensor":
    """(vocabulary, width)"""
    weight: Tensor = model.get_input_embeddings().weight  # type: ignore[assignment]
    return weight


def directly_used(model: "PreTrainedModel") -> tuple[str, ...]:
    """Names of linear layers whose weight the family's code takes out of the layer, instead of calling it.

    Mamba multiplies by ``dt_proj.weight``: a packed weight there is no matrix, so such a layer can't be replaced. Seen
    in a forward without memory; none where the family can't run so, and of RWKV, whose code knows packed weights.
    """
    import torch
    from torch import nn

    if "quant_state" in _source(model):
        return ()

    watched = {module: name for name, module in model.named_modules() if type(module) is nn.Linear}
    inside: set[nn.Module] = set()
    found: set[str] = set()

    class Watched(nn.Linear):
        def __getattr__(self, name: str) -> Any:
            if name == "weight" and self not in inside:
                found.add(watched[self])
            return super().__getattr__(name)

        def forward(self, *arguments: Any) -> "Tensor":
            inside.add(self)
            try:
                return super().forward(*arguments)
            finally:
                inside.discard(self)

    for layer in watched:
        layer.__class__ = Watched
    try:
        with torch.inference_mode():
            model(input_ids=torch.zeros((1, _WATCHED_TOKENS), dtype=torch.long, device="meta"))
    except FORWARD_ERRORS:
        pass  # what was seen until then is true
    finally:
        for layer in watched:
            layer.__class__ = nn.Linear
    head: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    seen = {_without_numbers(name) for name in found}  # later layers, where the forward ended, are as the first
    return tuple(
        sorted(name for layer, name in watched.items() if _without_numbers(name) in seen and layer is not head)
    )


def _without_numbers(name: str) -> str:
    """With layers by no number; w1 and w2 are two layers."""
    return re.sub(r"(?<![^.])\d+(?![^.])", "*", name)
