"""The flag of all commands that load a model."""

from typing import Annotated, Any

import typer

from bitladder.hub_kernels import forbid_hub_kernels


def _forbid(trusted: bool | None) -> bool | None:
    if not trusted:
        forbid_hub_kernels()
    return trusted


def _option(whose: str) -> Any:
    return typer.Option("--trust-remote-code", callback=_forbid, help=f"Run code that comes with {whose}.")


TrustRemoteCode = Annotated[bool, _option("the model")]
TrustRemoteCodeIfSaid = Annotated[bool | None, _option("the model, or with tasks of your own")]
"""None: as the configuration says"""
