"""The flag of commands that load one model."""

from typing import Annotated

import typer

from bitladder.hub_kernels import forbid_hub_kernels


def _forbid(trusted: bool) -> bool:
    if not trusted:
        forbid_hub_kernels()
    return trusted


TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", callback=_forbid, help="Run code that comes with the model.")
]
