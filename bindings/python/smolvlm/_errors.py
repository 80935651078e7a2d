"""One exception for each status of the C library, all of them `Error`."""

from __future__ import annotations

from enum import IntEnum

from ._abi import library


class Status(IntEnum):
    """What became of a call; `smolvlm_status` in C."""

    OK = 0
    INVALID_ARGUMENT = 1
    NOT_FOUND = 2
    INVALID_MODEL = 3
    UNSUPPORTED = 4
    OUT_OF_MEMORY = 5
    CONTEXT_OVERFLOW = 6
    BUSY = 7
    BACKEND = 8
    INTERNAL = 9


class Error(Exception):
    """What the library answers in place of a result: `status` to branch on, one line of text to log."""

    status: Status = Status.INTERNAL


class InvalidArgumentError(Error, ValueError):
    """A value of the caller is out of range, malformed or inconsistent."""

    status = Status.INVALID_ARGUMENT


class NotFoundError(Error, FileNotFoundError):
    """A file or directory is not there."""

    status = Status.NOT_FOUND


class InvalidModelError(Error):
    """A file of the model is damaged, incomplete, or contradicts another one."""

    status = Status.INVALID_MODEL


class UnsupportedError(Error):
    """Well-formed, but not something that this build or version does."""

    status = Status.UNSUPPORTED


class OutOfMemoryError(Error, MemoryError):
    """A memory limit would be exceeded."""

    status = Status.OUT_OF_MEMORY


class ContextOverflowError(Error):
    """The prompt is longer than the context."""

    status = Status.CONTEXT_OVERFLOW


class BusyError(Error):
    """The session runs a generation already."""

    status = Status.BUSY


class BackendError(Error):
    """The inference backend reported an error."""

    status = Status.BACKEND


class InternalError(Error):
    """A defect of the library."""

    status = Status.INTERNAL


_KINDS: dict[int, type[Error]] = {kind.status: kind for kind in Error.__subclasses__()}


def check(status: int) -> None:
    """Raises what the last call of this thread reported."""
    if status != Status.OK:
        raise _KINDS.get(status, Error)(library.smolvlm_last_error().decode())
