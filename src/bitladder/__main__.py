"""``python -m bitladder``: the same as ``bitladder``."""

from bitladder.cli.main import run

run()
