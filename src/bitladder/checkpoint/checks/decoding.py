"""Whether what decodes bitsandbytes' weights fits them: it fails on the rest, or computes something else."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bitladder.checkpoint.checks.subject import Subject
from bitladder.checkpoint.forward import Loaded
from bitladder.checkpoint.kinds import is_packed
from bitladder.checkpoint.tensors import TensorInfo
from bitladder.checkpoint.values import bits_of
from bitladder.errors import BrokenFileError
from bitladder.json_files import parse_json_object
from bitladder.records import Finding
from bitladder.wording import describe_mismatch, name_some

_STATE = ".quant_state.bitsandbytes__"
_CODES = 16
_NESTED_CODES = 256


class _FourBitState(BaseModel):
    """The settings of one 4-bit weight, as bitsandbytes stores them: JSON in a tensor of bytes."""

    model_config = ConfigDict(strict=True)

    quant_type: str
    blocksize: int = Field(ge=1)
    dtype: str = Field(pattern="^(float32|float16|bfloat16)$")
    shape: list[int]
    nested_blocksize: int | None = Field(default=None, ge=1)
    nested_dtype: str | None = None
    nested_offset: float | None = Field(default=None, allow_inf_nan=False)


def check_decoding(subject: Subject, loaded: Loaded | None) -> list[Finding]:
    """Scales, maps and settings of every weight that bitsandbytes packed, against the weight."""
    problems = {name: problem for name, problem in _problems(subject) if problem is not None}
    if not problems:
        return []
    name, problem = next(iter(problems.items()))
    more = f"; nor can {name_some(list(problems)[1:])}" if len(problems) > 1 else ""
    message = f"{name} can't be decoded: {problem}{more}"
    return [Finding(check="decoding", severity="error", message=message, data={"tensors": sorted(problems)})]


def _problems(subject: Subject) -> Iterator[tuple[str, str | None]]:
    tensors = subject.tensors
    for name, tensor in tensors.items():
        if is_packed(name, tensors):
            yield name, _four_bit_problem(name, tensor, subject)
        elif name.endswith(".weight") and (scales := tensors.get(f"{name.removesuffix('weight')}SCB")) is not None:
            wanted = ("F32", tensor.shape[:1])
            yield name, None if (scales.dtype, scales.shape) == wanted else _unlike("SCB", scales, *wanted)


def _four_bit_problem(name: str, tensor: TensorInfo, subject: Subject) -> str | None:
    names = [other for other in subject.tensors if other.startswith(f"{name}{_STATE}")]
    if len(names) != 1:
        return f"it has {len(names)} quantization states, expected one"
    text = bits_of(subject.directory, subject.tensors[names[0]]).tobytes()
    try:
        state = _FourBitState.model_validate(parse_json_object(text, "its quantization state", "make it again"))
    except BrokenFileError as error:
        return str(error)
    except ValidationError as error:
        first = error.errors()[0]
        return f"its quantization state has {'.'.join(map(str, first['loc']))}: {describe_mismatch(first)[:100]}"
    if state.quant_type != names[0].rpartition(_STATE)[2]:
        return f"its quantization state is of {state.quant_type!r}, its name is {names[0]}"
    weights = math.prod(state.shape)
    if 2 * tensor.size_bytes not in (weights, weights + 1):
        return f"{tensor.size_bytes:,} bytes of codes, expected those of {state.shape}"
    return next(_unfitting_parts(name, state, math.ceil(weights / state.blocksize), subject.tensors), None)


def _unfitting_parts(name: str, state: _FourBitState, blocks: int, tensors: Mapping[str, Any]) -> Iterator[str]:
    wanted = {"absmax": ("F32", blocks), "quant_map": ("F32", _CODES)}
    if f"{name}.nested_absmax" in tensors:
        if state.nested_blocksize is None or state.nested_offset is None or state.nested_dtype is None:
            yield "its quantization state doesn't say how its scales are quantized"
            return
        wanted["absmax"] = ("U8", blocks)
        wanted["nested_absmax"] = ("F32", math.ceil(blocks / state.nested_blocksize))
        wanted["nested_quant_map"] = ("F32", _NESTED_CODES)
    for part, (dtype, count) in wanted.items():
        tensor = tensors.get(f"{name}.{part}")
        if tensor is None:
            yield f"it has no {part}"
        elif (tensor.dtype, math.prod(tensor.shape)) != (dtype, count):
            yield _unlike(part, tensor, dtype, (count,))


def _unlike(part: str, tensor: TensorInfo, dtype: str, shape: tuple[int, ...]) -> str:
    return f"its {part} is {tensor.dtype} {list(tensor.shape)}, expected {dtype} {list(shape)}"
