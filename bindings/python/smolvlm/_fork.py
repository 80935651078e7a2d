"""What a child of `os.fork` inherits: Python's locks as the parent's threads held them, and none of the threads."""

from __future__ import annotations

import os
from typing import Protocol
from weakref import WeakSet


class Forked(Protocol):
    def after_fork(self) -> None:
        """Called in the child, before anything else runs in it."""


_things: WeakSet[Forked] = WeakSet()


def tell(thing: Forked) -> None:
    """Has it told in each child, as long as it lives."""
    _things.add(thing)


def _after() -> None:
    for thing in list(_things):
        thing.after_fork()


os.register_at_fork(after_in_child=_after)
