"""Values of the caller as C takes them: ctypes would cut a number that is too large, and C a text at its first NUL."""

from __future__ import annotations

import math
import operator
from typing import Any, Mapping

from ._errors import InvalidArgumentError

UINT32, UINT64 = 2**32 - 1, 2**64 - 1


def integer(value: Any, name: str, most: int = UINT32) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: a {type(value).__name__} given, an int needed") from None
    if not 0 <= number <= most:
        raise InvalidArgumentError(f"{name}: {number} given, 0 to {most} accepted")
    return number


def text(value: Any, name: str) -> bytes:
    if not isinstance(value, str):
        raise TypeError(f"{name}: a {type(value).__name__} given, a str needed")
    if "\0" in value:
        raise InvalidArgumentError(f"{name}: character {value.index(chr(0))} is NUL")
    try:
        return value.encode()
    except UnicodeEncodeError as error:
        raise InvalidArgumentError(f"{name}: character {error.start} is half of a surrogate pair") from None


def choice(value: Any, choices: Mapping[str, int], name: str) -> int:
    if value not in choices:
        raise InvalidArgumentError(f"{name}: {value!r} is none of {', '.join(choices)}")
    return choices[value]


def milliseconds(seconds: float, name: str) -> int:
    """At least one: zero would mean no deadline, and one that has passed already is over at once."""
    if math.isnan(seconds):
        raise InvalidArgumentError(f"{name}: {seconds} seconds given")
    return int(min(max(1, math.ceil(min(seconds, UINT32) * 1000)), UINT32))
