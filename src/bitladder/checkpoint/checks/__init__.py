"""The audit's checks: independent of each other, each (checkpoint, loaded model or none) -> findings.

Adding a check is adding a function to the table. Severity decides alone: an error means that the checkpoint isn't what
it says.
"""

from bitladder.checkpoint.checks.decoding import check_decoding
from bitladder.checkpoint.checks.integrity import check_config, check_manifest, check_tokenizer
from bitladder.checkpoint.checks.memory import (
    check_causal,
    check_hardware,
    check_library,
    check_loaded_types,
    check_memory,
    check_operators,
)
from bitladder.checkpoint.checks.stored import (
    check_bytes,
    check_head,
    check_kept,
    check_layers,
    check_scheme,
    check_size,
)
from bitladder.checkpoint.checks.subject import Check, Subject
from bitladder.checkpoint.checks.values import check_float32_values, check_four_bit_values, check_numbers

__all__ = ["CHECKS", "SOUNDNESS_CHECKS", "Check", "Subject"]

SOUNDNESS_CHECKS: tuple[Check, ...] = (
    check_manifest,
    check_config,
    check_scheme,
    check_head,
    check_decoding,
    check_numbers,
)
"""what a command that would use a checkpoint asks first: do the files hold what manifest and config say, in numbers?"""

CHECKS: tuple[Check, ...] = (
    *SOUNDNESS_CHECKS,
    check_tokenizer,
    check_bytes,
    check_kept,
    check_layers,
    check_size,
    check_float32_values,
    check_four_bit_values,
    check_loaded_types,
    check_causal,
    check_memory,
    check_operators,
    check_library,
    check_hardware,
)
