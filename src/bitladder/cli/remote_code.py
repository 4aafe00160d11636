"""The flag of all commands that load a model."""

from typing import Annotated

import typer

from bitladder.hub_kernels import forbid_hub_kernels


def _forbid(trusted: bool | None) -> bool | None:
    if not trusted:
        forbid_hub_kernels()
    return trusted


_OPTION = typer.Option("--trust-remote-code", callback=_forbid, help="Run code that comes with the model.")
TrustRemoteCode = Annotated[bool, _OPTION]
TrustRemoteCodeIfSaid = Annotated[bool | None, _OPTION]
"""None: as the configuration says"""
