"""The package itself: its version, and where its code lies."""

from pathlib import Path

__version__ = "0.1.0"
FOLDER = Path(__file__).parent
BUILTIN = FOLDER / "builtin"
"""the built-in suite's questions and prose, with their task files: what a study needs where no data can be had"""
