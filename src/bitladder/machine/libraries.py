"""What is changed in other people's libraries while something of ours runs: which attribute, why, until which version.

One change is one row of `PATCHES`. A test looks each target up, and so fails when a version has no such attribute any
more. Code that the Hub's package ``kernels`` would fetch at an import is forbidden here too.
"""

import functools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Any


def forbid_hub_kernels() -> None:
    """From now on no import in this process finds ``kernels``; the libraries do as they do where it isn't installed."""
    modules: dict[str, Any] = sys.modules
    modules["kernels"] = None


_TIMEOUT_S = 5.0


@contextmanager
def offline_without_network() -> Iterator[None]:
    """Inside the block ``datasets`` reads nothing but its cache, where the Hub can't be reached."""
    from huggingface_hub import constants

    if _is_reachable(constants.ENDPOINT):
        yield
        return
    with (
        patched("huggingface_hub.constants:HF_HUB_OFFLINE", True),
        patched("datasets.config:HF_HUB_OFFLINE", True),
    ):
        yield


@functools.cache
def _is_reachable(endpoint: str) -> bool:
    """Whether anything answers there, through the proxy where there is one; asked once a process."""
    from huggingface_hub import get_session
    from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled  # type: ignore[attr-defined]  # httpx's own

    try:
        get_session().head(endpoint, timeout=_TIMEOUT_S)
    except (HTTPError, OfflineModeIsEnabled):
        return False
    return True


@dataclass(frozen=True)
class Patch:
    """Why an attribute of a library can't stay as it is."""

    why: str
    until: str
    """with which version the patch can go"""


PATCHES = {
    "datasets:load_dataset": Patch(
        "a task's data come from a mirror, or from files beside its YAML, and what fails is told by the task's name",
        "lm-eval takes a function that loads a task's data; 0.4.13 calls this one by its name",
    ),
    "datasets.load:dataset_module_factory": Patch(
        "finding a data set's files takes 0.14 s, again for each of its configurations; MMLU has 57",
        "datasets keeps what it found; 5.2 looks again",
    ),
    "datasets.data_files:resolve_pattern": Patch(
        "a pattern in a task's YAML may reach files outside the task's folder, which is refused",
        "datasets has a root that patterns can't leave; 5.2 has none",
    ),
    "datasets.config:HF_HUB_OFFLINE": Patch(
        "without a network its cache is read at once, not after half a minute of retries",
        "datasets takes this by call; 5.2 reads it from the environment, once",
    ),
    "huggingface_hub.constants:HF_HUB_OFFLINE": Patch(
        "as datasets' own, which asks both",
        "huggingface_hub takes this by call in what datasets uses; 2.4 reads it from the environment, once",
    ),
    "bitsandbytes:matmul_4bit": Patch(
        "a CPU without 16-bit products emulates them many times slower than FP32, whose result is as exact",
        "bitsandbytes multiplies in FP32 where the CPU has no 16-bit products; 0.50 does not",
    ),
    "bitsandbytes.nn:Linear4bit.forward": Patch(
        "packed weights' product reads each row of its input as if it lay in one piece: of a transposed one, such "
        "as Mamba's, it gives other numbers without a word",
        "bitsandbytes makes inputs contiguous before its CPU library reads them; 0.50 does not",
    ),
    "bitsandbytes.nn:Linear8bitLt.forward": Patch(
        "int8_vectorwise_quant takes the second axis for the features, of an input of four axes too, as DeepSeek V3's "
        "attention has them",
        "bitsandbytes flattens all axes but the last; 0.50 does not",
    ),
    "transformers.masking_utils:find_packed_sequence_indices": Patch(
        "it asks the device whether positions start anew and waits for the answer in every forward; our mask is made "
        "of other things",
        "transformers asks an attention of one's own whether it needs that; 5.24 asks always",
    ),
    "gguf:GGUFReader": Patch(
        "transformers parses a GGUF's metadata again for each thing it wants to know, at seconds a time",
        "transformers keeps the reader; 5.24 opens it anew",
    ),
    "transformers.modeling_gguf_pytorch_utils:tqdm": Patch(
        "its progress bar is the only one without a switch",
        "transformers' logging switches this bar off too; in 5.24 it does not",
    ),
    "tqdm.std:tqdm.__init__": Patch(
        "lm-eval and its libraries draw progress bars through ours, and most have no switch",
        "lm-eval takes a flag for its bars in every function that we call; 0.4.13 has it in some",
    ),
    "lm_eval.utils:env.from_string": Patch(
        "a task's templates are parsed and compiled again for every document, which takes longer than scoring it on a "
        "GPU",
        "lm-eval keeps compiled templates; 0.4.13 compiles anew",
    ),
    "lm_eval.utils:env": Patch(
        "a template in a user's YAML could reach Python's insides; Jinja's sandbox renders lm-eval's own all the same",
        "lm-eval renders in a sandbox; 0.4.13 does not",
    ),
    "lm_eval.api.samplers:ContextSampler.sample": Patch(
        "few-shot examples are drawn for one document after the other, so that a prompt depends on which come before",
        "lm-eval draws by document; 0.4.13 draws from one stream",
    ),
    "torch.nn:Module.forward": Patch(
        "norms and MLPs run compiled, and remain the modules that other libraries look for",
        "transformers compiles single modules by a setting; 5.24 compiles the whole forward",
    ),
    "transformers.models.llama.modeling_llama:apply_rotary_pos_emb": Patch(
        "runs compiled; each family's module has its own under this name",
        "transformers compiles single functions by a setting; 5.24 compiles the whole forward",
    ),
}
"""by module and attribute, with a colon between; of a class or an object that is found at run time one of its kind"""

_ABSENT = object()


@contextmanager
def patched(name: str, value: Any, owner: object | None = None) -> Iterator[None]:
    """In the block the attribute of that row of `PATCHES` is ``value``, and after it what it was.

    ``owner``: the object whose attribute it is, where the row's own is only one of its kind.
    """
    target, attribute = target_of(name) if owner is None else owner, attribute_of(name)
    before = vars(target).get(attribute, _ABSENT)
    setattr(target, attribute, value)
    try:
        yield
    finally:
        if before is _ABSENT:
            delattr(target, attribute)
        else:
            setattr(target, attribute, before)


def patch_for_good(name: str, value: Any, owner: object | None = None) -> None:
    """From now on, in this process, the attribute is ``value``; ``owner`` as `patched` has it."""
    setattr(target_of(name) if owner is None else owner, attribute_of(name), value)


def target_of(name: str) -> object:
    """What has the attribute of a row of `PATCHES`: the module, or a class or object in it."""
    module, _, path = name.partition(":")
    return resolve_name(f"{module}:{path.rpartition('.')[0]}")


def attribute_of(name: str) -> str:
    """The attribute's own name. There is no exchange without a row."""
    assert name in PATCHES
    return name.replace(":", ".").rpartition(".")[2]
