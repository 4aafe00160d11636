"""What is wrong with a value that a user gave, in words of ours instead of pydantic's."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

_EXPECTED = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text",
    "tuple": "one name or several",
    "dict": "names with a value each",
    "greater_than_equal": "{ge:g} or more",
    "greater_than": "more than {gt:g}",
    "less_than": "less than {lt:,}",
    "literal_error": "{expected}",
}
"""by pydantic's name of an error, or what it begins with"""


def describe_mismatch(error: "ErrorDetails") -> str:
    """What was found and what is expected."""
    context = error.get("ctx", {})
    if "error" in context:  # a message of ours says all
        return str(context["error"])
    kind = error["type"]
    expected = _EXPECTED.get(kind) or _EXPECTED.get(kind.partition("_")[0])
    told = f"expected {expected.format(**context)}" if expected else error["msg"].lower()
    return f"found {error['input']!r}, {told}"
