"""The built-in suite's questions and prose, with their task files: what a study needs where no data can be had."""

from pathlib import Path

FOLDER = Path(__file__).parent
