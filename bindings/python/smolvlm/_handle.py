"""An object of the C library that may be used and freed by any thread at any time."""

from __future__ import annotations

import threading
from ctypes import c_void_p
from typing import Callable

from . import _fork
from ._errors import InvalidArgumentError


class Handle:
    """`with handle as pointer:` lends it; once closed, the last one who uses it frees it.

    C forbids to free a handle while another thread begins a call with it.
    """

    def __init__(self, name: str, pointer: c_void_p, free: Callable[[c_void_p], None]) -> None:
        self._name, self._free = name, free
        self._pointer: c_void_p | None = pointer
        self._users, self._closed = 0, False
        self.after_fork()
        _fork.tell(self)

    def after_fork(self) -> None:
        self._lock = threading.RLock()  # a signal handler may come in while its own thread holds it

    def __enter__(self) -> c_void_p:
        with self._lock:
            if self._closed or self._pointer is None:
                raise InvalidArgumentError(f"{self._name}: closed already")
            self._users += 1
            return self._pointer

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._users -= 1
            self._free_unused()

    def visit(self, call: Callable[[c_void_p], None]) -> None:
        """Calls something short with it, unless it is freed; one that is closed may still be in use."""
        with self._lock:
            if self._pointer is not None:
                call(self._pointer)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._free_unused()

    def _free_unused(self) -> None:
        if self._closed and self._users == 0 and self._pointer is not None:
            pointer, self._pointer = self._pointer, None
            self._free(pointer)

    def __del__(self) -> None:
        self.close()
