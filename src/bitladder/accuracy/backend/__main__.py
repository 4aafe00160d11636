"""lm-eval's own command with the model ``bitladder`` registered; lm-eval has no other way to find one."""

import lm_eval.models  # noqa: F401  # fills lm-eval's registry, which it does only while the registry is empty
from lm_eval.__main__ import cli_evaluate

import bitladder.accuracy.backend.lm  # noqa: F401

if __name__ == "__main__":
    cli_evaluate()
