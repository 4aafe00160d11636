"""Kernels of the Hub, which are code from elsewhere.

Where the package ``kernels`` is installed, bitsandbytes fetches one when it is imported on a CPU with BF16
instructions, and transformers some that architectures want. bitsandbytes has no switch for it, and ``kernels`` takes
for trusted whose they are.
"""

import sys
from typing import Any


def forbid_hub_kernels() -> None:
    """From now on no import in this process finds ``kernels``; the libraries do as they do where it isn't installed."""
    modules: dict[str, Any] = sys.modules
    modules["kernels"] = None
