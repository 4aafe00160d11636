"""The doors through which text leaves: both standard streams and rich's console, none of which passes controls on."""

import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from bitladder.text.words import printable

_BAR_MOVES = re.compile(r"(?:\n|\x1b\[A)+\Z|\r|")
"""what tqdm's progress bars begin a write with: back to the start of the line; or all of it: between lines"""


class PrintableStream:
    """A text stream that writes `printable` text. rich, whose own sequences have to pass, finds what is behind it."""

    def __init__(self, stream: TextIO) -> None:
        self.rich_proxied_file = stream

    def write(self, text: str) -> int:
        moves = _BAR_MOVES.match(text)
        start = moves.end() if moves else 0
        self.rich_proxied_file.write(text[:start] + _shown(text[start:], self.encoding))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        if name == "buffer":  # click would write past this where the locale is ASCII
            raise AttributeError(name)
        return getattr(self.rich_proxied_file, name)


@contextmanager
def printable_streams() -> Iterator[None]:
    """In the block, `PrintableStream` stands for both standard streams, for whatever library writes there."""
    kept = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (stream and PrintableStream(stream) for stream in kept)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = kept


class Terminal(Console):
    """rich's console for text from outside: no markup, no highlighting, no controls but rich's own."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, highlight=False)

    def render_str(self, text: str, **options: Any) -> Text:
        """Before rich measures it: what is longer by codes has the width that they take."""
        return super().render_str(_shown(text, self.encoding), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        """As rich does; what a segment has of sequences of rich's is in its style or its ``control``."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else _shown(text, self.encoding), style, control)


def _shown(text: str, encoding: str | None) -> str:
    """`printable`, and what the stream can't encode by its code: in an ASCII locale a name is no reason to end."""
    encoding = encoding or "utf-8"
    return printable(text).encode(encoding, "backslashreplace").decode(encoding)
