"""lm-eval's own command with the model ``bitladder`` registered; lm-eval has no other way to find one."""

import sys

from bitladder.errors import UserError
from bitladder.machine.libraries import forbid_hub_kernels
from bitladder.text.words import one_line


def run() -> None:
    """Raises SystemExit with 2 and one line for bad input."""
    if not any("trust_remote_code" in argument for argument in sys.argv):
        forbid_hub_kernels()  # before lm-eval imports what would load them
    import lm_eval.models  # noqa: F401  # fills lm-eval's registry, which it does only while the registry is empty
    from lm_eval.__main__ import cli_evaluate

    import bitladder.accuracy.backend.lm  # noqa: F401

    try:
        cli_evaluate()
    except UserError as error:
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    run()
