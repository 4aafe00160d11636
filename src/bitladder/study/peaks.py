"""What a study's worker has of memory at the most, phase by phase: more than a run at batch 1.

From sizes alone, and so rough: which of an allocator's blocks are free again when the next are asked for isn't
known.
"""

from typing import TYPE_CHECKING

from bitladder.checkpoint.expected import Expected, value_bytes
from bitladder.records import AccuracyTask, Divergence, Rescoring, Scenario, Scheme
from bitladder.rungs import method_of
from bitladder.study.prepare import Prepared

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_FLOAT32_BYTES = 4
_LOGITS_AT_ONCE = 6
"""copies in FP32 that a comparison of two distributions makes: both, their logarithms, and what is summed"""


def phase_peaks(
    prepared: Prepared, skeleton: "PreTrainedModel", scheme: Scheme, expected: Expected, overhead_bytes: int | None
) -> dict[str, int]:
    """Bytes of main memory, or of a GPU, by what is planned; empty where the libraries' share isn't known."""
    from bitladder.accuracy.backend.budget import budget_on, token_bytes
    from bitladder.checkpoint.skeleton import head_weights, vocabulary_size
    from bitladder.perf.memory import predict_working_memory

    if overhead_bytes is None:
        return {}
    device = prepared.study.calibration.device
    on_cpu = device == "cpu"
    copies = method_of(scheme).loading_copies(device)
    held = overhead_bytes + expected.stored_bytes + copies * expected.packed_bytes
    widened = _FLOAT32_BYTES * head_weights(skeleton) if on_cpu else 0  # 16-bit products are computed so
    found = {}
    if on_cpu:  # which is where rungs are made: from the source in 16 bits
        found["quantizing"] = overhead_bytes + 2 * expected.parameters + expected.quantizing_bytes
    if any(isinstance(item, AccuracyTask | Rescoring) for item in prepared.study.items):
        one = token_bytes(skeleton, device.partition(":")[0])
        tokens = prepared.wanted.tasks.token_budget or budget_on(device.partition(",")[0], one)
        found["accuracy"] = held + widened + one * tokens
    for item in prepared.study.items:
        if isinstance(item, Divergence):
            logits = item.window_tokens * vocabulary_size(skeleton) * _FLOAT32_BYTES
            head = 2 * head_weights(skeleton) + widened  # the baseline's beside the rung's
            found["divergence"] = held + widened + head + _LOGITS_AT_ONCE * logits
        elif isinstance(item, Scenario):
            row = predict_working_memory(skeleton, value_bytes(scheme), item.prompt_tokens, item.new_tokens)
            found[item.scenario] = held + row.of_rows(item.batch_size_cap or 1).total_bytes
    return found
