"""SmolVLM vision-language models: a picture and a question in, an answer out.

    import smolvlm

    model = smolvlm.Model("models/demo")
    print(model.ask("picture.jpg", "What objects are in this image?"))

This package calls libsmolvlm, the C library, and holds no model of its own. include/smolvlm.h is the specification.
"""

from ._abi import library as _library
from ._answer import Answer, FinishReason, Metrics
from ._errors import (
    BackendError,
    BusyError,
    ContextOverflowError,
    Error,
    InternalError,
    InvalidArgumentError,
    InvalidModelError,
    NotFoundError,
    OutOfMemoryError,
    Status,
    UnsupportedError,
)
from ._images import Frame, Image
from ._log import log_to
from ._model import Model, Session
from ._request import Parameters
from ._stream import Stream

__all__ = [
    "Answer",
    "BackendError",
    "BusyError",
    "ContextOverflowError",
    "Error",
    "FinishReason",
    "Frame",
    "Image",
    "InternalError",
    "InvalidArgumentError",
    "InvalidModelError",
    "Metrics",
    "Model",
    "NotFoundError",
    "OutOfMemoryError",
    "Parameters",
    "Session",
    "Status",
    "Stream",
    "UnsupportedError",
    "build_info",
    "log_to",
]

__version__: str = _library.smolvlm_version().decode()


def build_info() -> str:
    """Version, target and backends of the library that is loaded: a line for a bug report."""
    info: bytes = _library.smolvlm_build_info()
    return info.decode()
