"""Values in error messages: short, printable, whatever they are."""

import reprlib
from typing import Any

_REPR = reprlib.Repr()
_REPR.maxlevel = 4  # a deeply nested value would break repr() itself
_REPR.maxstring = _REPR.maxother = 200
_REPR.maxlong = 40
_REPR.maxlist = _REPR.maxdict = _REPR.maxtuple = 8


def short(value: Any, limit: int = 80) -> str:
    """`repr` in at most `limit` characters; a value of megabytes costs no more than a word."""
    text = _REPR.repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def keys_of(record: Any) -> str:
    """What a record is made of, for messages: its keys, or the value if it is no object."""
    if not isinstance(record, dict):
        return f"found {short(record)}, not an object"
    names = sorted(str(key) for key in record)
    shown = ", ".join(short(name, 40) for name in names[:12])
    more = f" and {len(names) - 12} more" if len(names) > 12 else ""
    return f"found the keys {shown}{more}" if names else "found an object without keys"


def why(error: Exception) -> str:
    """An error's reason, without the path that the system repeats."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return short(str(error), 200).strip("'\"")
