"""The package itself: its version, and where its code lies."""

from pathlib import Path

__version__ = "0.1.0"
FOLDER = Path(__file__).parent
