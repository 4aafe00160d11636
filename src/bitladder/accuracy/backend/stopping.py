"""When a row's text has a stop string in it, wherever the tokens' borders lie."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SPARE_TOKENS = 4
"""looked at before those that can hold the stop string, since a tokenizer may decode the first one otherwise"""


class StopStrings:
    """Stop strings of one set of requests. A token is decoded with those before it only if it can end one of them.

    ``tokenizer``: None does for no stop strings.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase | None", stops: Sequence[str]) -> None:
        self.tokenizer: Any = tokenizer
        self.stops = [stop for stop in stops if stop]
        self.tail = max((len(stop.encode()) for stop in self.stops), default=0) + _SPARE_TOKENS
        self._last = {stop[-1] for stop in self.stops}
        self._can_end: dict[int, bool] = {}

    def reached(self, generated: Sequence[int]) -> bool:
        """Whether the last of the generated tokens completed a stop string."""
        if not self.stops or not self._may_end(generated[-1]):
            return False
        text = self.tokenizer.decode(generated[-self.tail :])
        return any(stop in text for stop in self.stops)

    def _may_end(self, token: int) -> bool:
        if token not in self._can_end:
            text = self.tokenizer.decode([token])
            # A lone token may lose its space, and part of a character decodes to the replacement character.
            self._can_end[token] = " " in self._last or "\ufffd" in text or not self._last.isdisjoint(text)
        return self._can_end[token]
