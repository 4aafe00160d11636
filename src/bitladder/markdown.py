"""Text from outside, made harmless in Markdown."""

import re


def escape(text: str) -> str:
    """Text that Markdown shows as it is: no tags, no links, no table breaks."""
    flat = " ".join(text.split())
    return re.sub(r"([\\`*<|])", r"\\\1", flat).replace("](", "]\\(")
