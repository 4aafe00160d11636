"""What is asked of a quantization method, and the number types and tensors that the answers are about.

A method is a class in a file of its own, with a row in `rungs.METHODS`.
"""

import importlib.util
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from bitladder.errors import UserError
from bitladder.records import MethodName, Scheme
from bitladder.units import format_bytes

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

_TORCH_NAMES = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_NAMES = {torch_name: name for name, torch_name in _TORCH_NAMES.items()}


@dataclass(frozen=True)
class Types:
    """Of a checkpoint, as its tensors and its config.json show them."""

    stored: str
    """that most of its matrices have"""
    computed: str
    rest: str
    """that most of what is no matrix has"""


def torch_dtype(name: str) -> Any:
    """torch's type of that SafeTensors name (F64, F32, BF16 or F16)."""
    import torch

    return getattr(torch, _TORCH_NAMES[name])


def type_name(torch_name: str) -> str:
    """SafeTensors' name of torch's ``bfloat16``, ``torch.float32`` and so on; any other name as it is."""
    return _NAMES.get(torch_name.removeprefix("torch."), torch_name)


TensorKind = Literal["embedding", "linear", "norm", "head", "quantization state", "other"]


class Shaped(Protocol):
    """A stored tensor, or a parameter of a network."""

    @property
    def shape(self) -> Sized: ...


FLOATS = frozenset({"F64", "F32", "BF16", "F16"})

# bitsandbytes writes SCB, weight_format, absmax, maps and quant_state; the rest is what GPTQ, AWQ, compressed-tensors,
# auto-round, FP8 and torchao checkpoints hold beside their packed weights.
_STATE = re.compile(
    r"\.(SCB|weight_format)$"
    r"|\.weight\.(absmax|quant_map|nested_absmax|nested_quant_map|quant_state\..+)$"
    r"|[._:](scales?|scale_inv|zeros|zero_point|qzeros|g_idx|perm|global_scale|weight_shape)$"
)
_EMBEDDING = re.compile(r"(^|[._])(wte|wpe|\w*embed\w*)$")
_HEAD = re.compile(r"(^|\.)(\w*head|embed_out)$|^output$")
_NORM = re.compile(r"norm|(^|\.)ln_?\w*$", re.IGNORECASE)


def is_state(name: str) -> bool:
    """Whether the tensor serves to decode a quantized weight: scales, zero points, maps, shapes."""
    return _STATE.search(name) is not None


def is_packed(name: str, tensors: Mapping[str, object]) -> bool:
    """Whether the tensor holds bitsandbytes' 4-bit codes. Their type is chosen by whoever packs them
    (``bnb_4bit_quant_storage``) and says nothing: a BF16 holds four codes."""
    return f"{name}.absmax" in tensors


def module_of(name: str) -> str:
    """``model.layers.0.mlp.up_proj`` of any tensor that belongs to that layer."""
    module = name.rpartition(".")[0]
    return module.removesuffix(".weight") if is_state(name) else module


def describe_kept(bytes_by_kind: Mapping[str, int]) -> str:
    """``embedding 320.0 MiB, norm 0.1 MiB``, the largest first."""
    kinds = sorted(bytes_by_kind.items(), key=lambda item: -item[1])
    return ", ".join(f"{kind} {format_bytes(size)}" for kind, size in kinds)


def kind_of(name: str, tensor: Shaped) -> TensorKind:
    """The kind of module that a stored tensor belongs to."""
    if is_state(name):
        return "quantization state"
    module = module_of(name)
    if len(tensor.shape) < 2:
        return "norm" if _NORM.search(module) else "other"
    if _HEAD.search(module):
        return "head"
    return "embedding" if _EMBEDDING.search(module) else "linear"


class Stored(Protocol):
    """A stored tensor as its file's header shows it; ``dtype`` is SafeTensors' name."""

    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def size_bytes(self) -> int: ...


Shape = tuple[int, ...]
Tensors = Mapping[str, Stored]
FormatSettings = Mapping[str, Any]
"""what config.json says of how its weights are quantized"""
ReadBytes = Callable[[str], bytes]
"""name of a stored tensor -> its bytes"""
Widens = Callable[[Any, Any, int], bool]
"""(device, type, rows) -> whether such products run in FP32, since the device has none of that type"""


class UnknownKernelError(Exception):
    """The message says why nobody knows."""


class Method(ABC):
    """How weights are quantized, by one library; the answers here are those of most methods."""

    name: MethodName
    """as `records.Scheme` names it"""
    quantizes: bool = True
    """whether weights become other numbers than a cast makes of them"""
    foreign: bool = False
    """whether it stands for other libraries' formats, whose layout and kernels are theirs to know"""
    packages: tuple[str, ...] = ()
    """what making and loading its checkpoints needs beside transformers"""
    hub_tags: tuple[str, ...] = ()
    engines: tuple[str, ...] | None = None
    """which of `perf/engines` run its checkpoints as they are stored, where the engine's row leaves it open; None: the
    default alone"""
    why_no_other: str = "has not been tried with its layout"
    """of an engine that isn't among them: that engine ..."""
    replaces: str = "its library replaces plain linear layers alone"
    """why a model may keep matrices as they were"""

    def require_packages(self, what: str) -> None:
        """Raise UserError where ``what``, such as a rung, needs a package that isn't installed."""
        for package in self.packages:
            if importlib.util.find_spec(package) is None:
                raise UserError(
                    f"{what} needs the package {package}, which isn't installed; install it with "
                    f"`pip install {package}`"
                )

    # Telling a checkpoint

    @abstractmethod
    def declared(self, settings: FormatSettings | None, types: Types) -> Scheme | None:
        """The scheme that settings declare, or that there are none; None where they are another method's."""

    @abstractmethod
    def found(self, settings: FormatSettings | None, tensors: Tensors, types: Types) -> Scheme | None:
        """The scheme that the stored tensors show; None where they are another method's. What no tensor shows is the
        settings'."""

    def weight_name(self, name: str) -> str:
        """Of a stored tensor: the weight that it holds, or serves to decode."""
        return f"{module_of(name)}.weight" if is_state(name) else name

    @abstractmethod
    def decoded_shapes(self, tensors: Tensors, wanted: Mapping[str, Shape | None]) -> dict[str, Shape]:
        """By name the shapes of the weights that the stored tensors stand for, without those that it can't tell.

        ``wanted``: what the model has where each stored tensor goes.
        """

    def undecodable(self, tensors: Tensors, read: ReadBytes) -> Iterator[tuple[str, str]]:
        """(weight, what is wrong) where what decodes a weight doesn't fit it."""
        yield from ()

    # Making one

    @abstractmethod
    def quantization_config(self, scheme: Scheme, skipped: Sequence[str] = ()) -> Any:
        """What transformers has to be told to make the scheme; None where only the type changes.

        ``skipped``: modules that it has to be told to leave alone; empty where it knows itself.
        """

    def unpackable(self, model: "PreTrainedModel") -> Iterable[str]:
        """Layers that the quantizer would pack, and that couldn't run then."""
        return ()

    def packed_layers(self, model: "PreTrainedModel", config: Any) -> "Iterable[tuple[str, nn.Module]]":
        """(name, layer) that quantizing by ``config`` packs, of a model without memory, in which they are exchanged
        where the library does so."""
        return ()

    def layer_bytes(self, scheme: Scheme, in_features: int, out_features: int) -> dict[str, int]:
        """Bytes by name of what is stored of a packed layer; the first is its weights."""
        raise ValueError(f"{self.name} packs no layer")

    def passed_types(self, scheme: Scheme, *, is_matrix: bool) -> tuple[str, ...]:
        """The types that a weight is cast to on its way."""
        return (scheme.rest_type,)

    # Running one

    @abstractmethod
    def make_layer(self, scheme: Scheme, in_features: int, out_features: int, device: str) -> "nn.Linear":
        """A linear layer of random weights on ``device``, as a model of the scheme has it."""

    def prepare_layers(self, model: "nn.Module") -> None:
        """Let layers of this method's, all on a CPU, take every shape that the plain ones took."""
        return

    def loading_copies(self, device: str) -> int:
        """By how many times its packed weights a run's peak exceeds all that is counted."""
        return 0

    def mixes_tokens(self, scheme: Scheme) -> bool | None:
        """Whether a token changes what is said of those before it and beside it in a batch; None: nobody knows."""
        return None

    def product_rule(self, layer: Any, widens: Widens) -> Callable[[int], str] | None:
        """Which kernel multiplies so many rows by the weights of a layer; None: the layer isn't one of the method's.

        Raises UnknownKernelError.
        """
        return None

    def product_of_weights(self, layer: Any) -> "Callable[[Tensor], Tensor] | None":
        """A layer's product with the inputs as they are, where its own rounds them; None: it doesn't, or the layer
        isn't one of the method's."""
        return None

    def multiplies_int8(self, scheme: Scheme) -> bool:
        """Whether the products are said to be of INT8 by INT8."""
        return False

    def why_decoded(self, scheme: Scheme) -> str | None:
        """Why each call decodes the weights first; None where it doesn't."""
        return None

    def repacked_type(self, bytes_before: Mapping[str, int], bytes_after: Mapping[str, int]) -> str | None:
        """What the first forward turned scales into, from the bytes by type in memory before and after it."""
        return None

    def read_by(self, settings: FormatSettings) -> str | None:
        """The library that read it, where that isn't among those every machine is known by."""
        return None


def kept_modules(model: "PreTrainedModel", skipped: Sequence[str] | None) -> list[str]:
    """What transformers' quantizers leave as it is; ``skipped``: what they were told, None: nothing."""
    from transformers.quantizers.base import get_keys_to_not_convert

    kept = get_keys_to_not_convert(model) if skipped is None else skipped
    return [*kept, *(model._keep_in_fp32_modules or ())]


def unlike(part: str, tensor: Stored, dtype: str, shape: Shape) -> str:
    """What is wrong with a part that serves to decode a weight."""
    return f"its {part} is {tensor.dtype} {list(tensor.shape)}, expected {dtype} {list(shape)}"
