"""transformers' own norms, MLPs and rotary embeddings, compiled by torch: each becomes few kernels instead of many.

No line of them is ours: torch compiles what they are. Values are rounded where the uncompiled modules round them.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

from bitladder.patches import patched

if TYPE_CHECKING:
    from torch.nn import Module
    from transformers import PreTrainedModel

_KINDS = ("Norm", "MLP")
"""ends of the names of classes whose forward takes nothing but hidden states"""
_ROTARY = "apply_rotary_pos_emb"
_OPTIONS: dict[str, Any] = {"emulate_precision_casts": True}


@contextmanager
def compiled(model: "PreTrainedModel", wanted: bool = True) -> Iterator[None]:
    """Inside the block the model's elementwise parts are compiled; nothing changes where it isn't ``wanted``."""
    with ExitStack() as stack:
        if wanted:
            for module in filter(_is_ours_to_compile, model.modules()):
                function = _compiled(type(module).forward, 1)
                stack.enter_context(patched("torch.nn:Module.forward", partial(function, module), module))
            for name in {type(module).__module__ for module in model.modules()}:
                rotary = getattr(sys.modules[name], _ROTARY, None)
                if name.startswith("transformers.") and rotary is not None:
                    own = patched(
                        f"transformers.models.llama.modeling_llama:{_ROTARY}", _compiled(rotary, -2), sys.modules[name]
                    )
                    stack.enter_context(own)
        yield


def compile_errors(wanted: bool) -> tuple[type[Exception], ...]:
    """What torch raises where it can't compile; none where nothing is compiled, so that its compiler isn't loaded."""
    if not wanted:
        return ()
    from torch._dynamo.exc import TorchDynamoException

    return (TorchDynamoException,)


def _is_ours_to_compile(module: "Module") -> bool:
    kind = type(module)
    if "forward" in vars(module):  # another library has put its own there, which must go on being called
        return False
    return kind.__module__.startswith("transformers.") and kind.__name__.endswith(_KINDS)


@lru_cache
def _compiled(function: Callable[..., Any], tokens_axis: int) -> Callable[..., Any]:
    """The function, compiled once for any number of tokens."""
    import torch

    fast = torch.compile(function, options=_OPTIONS)

    def call(*arguments: Any, **options: Any) -> Any:
        for argument in arguments:
            if isinstance(argument, torch.Tensor) and argument.dim() > 2:
                torch._dynamo.maybe_mark_dynamic(argument, tokens_axis % argument.dim())
        return fast(*arguments, **options)

    return call
