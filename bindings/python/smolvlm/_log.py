"""The library's log messages, for Python's logging."""

from __future__ import annotations

import atexit
import logging
from typing import Any

from . import _abi
from ._abi import library
from ._errors import check

_LEVELS = {1: logging.ERROR, 2: logging.WARNING, 3: logging.INFO, 4: logging.DEBUG}
_callback: Any = None


def log_to(logger: logging.Logger | None) -> None:
    """Sends what the library has to say to a logger, for the whole process; None ends that, and is how it begins.

    The logger's handlers run inside the engine: they must not ask it anything.
    """
    global _callback

    def forward(_: Any, level: int, message: bytes) -> None:
        if logger is not None:
            logger.log(_LEVELS.get(level, logging.DEBUG), "%s", message.decode())

    new = _abi.LogCallback() if logger is None else _abi.LogCallback(forward)
    check(library.smolvlm_set_log_callback(new, None))
    _callback = new  # the one before is not running any more


@atexit.register
def _stop() -> None:
    log_to(None)
