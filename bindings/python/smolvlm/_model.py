"""Models and conversations."""

from __future__ import annotations

import os
import threading
from ctypes import byref, c_void_p, sizeof
from typing import TYPE_CHECKING, Any, Callable

from . import _abi, _check
from ._abi import library
from ._answer import Answer
from ._errors import check
from ._handle import Handle
from ._images import Image
from ._request import OnText, Parameters, Request
from ._stream import Stream

if TYPE_CHECKING:
    from typing import Literal

    from ._request import Unpack

    Backend = Literal["auto", "candle", "onnx"]
    Device = Literal["auto", "cpu", "cuda", "metal", "tensorrt"]
    DType = Literal["auto", "f32", "bf16", "f16", "int8", "uint8", "quantized", "q4", "q4f16", "bnb4", "int4"]


def _new(create: Callable[..., int], *arguments: Any) -> c_void_p:
    out = c_void_p()
    check(create(*arguments, byref(out)))
    return out


def _path(path: str | os.PathLike[str] | None, name: str) -> bytes | None:
    return None if path is None else _check.text(os.fspath(path), name)


class _Asked:
    """What a model and a conversation have in common."""

    _handle: Handle
    _process: Any

    def ask(self, *question: Image, **parameters: Unpack[Parameters]) -> Answer:
        """Answers a question: any number of pictures, then the text.

            model.ask("a.jpg", "What is this?")
            model.ask(frame, "Is the path clear?", channels="bgr", timeout=0.5, max_new_tokens=8)

        A picture is a path or the bytes of a JPEG, PNG, WebP, BMP, GIF, TIFF or PBM/PGM/PPM/PAM file; an array of uint8 or uint16
        (HxW, HxWx3, HxWx4); a Pillow image; a `Frame`, or a message of ROS. An empty text about a picture asks for a caption.

        Files and Pillow images are turned upright as their EXIF orientation says; arrays and frames are used as they lie. Of 16 bits,
        gray is scaled so that the picture's largest value is white, so that a depth map is seen; colours keep their high byte.

        Bytes, arrays and frames are lent, not copied, unless an array's strides run backwards along rows, or have gaps between pixels:
        leave them as they are until the call returns. `Parameters` names the keywords.

        Any thread may ask, and several at once; other Python threads run meanwhile. An interrupt (Ctrl-C) ends the call.
        """
        request = Request(question, parameters)
        if threading.current_thread() is not threading.main_thread():
            return self._run(request, None)
        # Python handles signals in the main thread, and not while that is in C: another one calls.
        with self._stream(request, listen=False) as stream:
            stream.wait()
        return stream.answer

    def _run(self, request: Request, on_text: OnText | None) -> Answer:
        with self._handle as handle:
            return request.run(self._process, handle, on_text)

    def stream(self, *question: Image, **parameters: Unpack[Parameters]) -> Stream:
        """As `ask`; the answer comes piece by piece, while it is written.

            with model.stream("a.jpg", "Describe this.") as stream:
                for piece in stream:
                    print(piece, end="", flush=True)
            print(stream.answer.metrics)

        `async with` and `async for` do the same for asyncio. Leaving early cancels the generation.
        """
        return self._stream(Request(question, parameters))

    def _stream(self, request: Request, listen: bool = True) -> Stream:
        raise NotImplementedError

    async def ask_async(self, *question: Image, **parameters: Unpack[Parameters]) -> Answer:
        """As `ask`, for asyncio; a task that is cancelled cancels the generation."""
        async with self.stream(*question, **parameters) as stream:
            async for _ in stream:
                pass
        return stream.answer

    def close(self) -> None:
        """Frees it, at once or when the calls that run with it have ended; again is fine."""
        self._handle.close()

    def __exit__(self, *_: object) -> None:
        self.close()


class Model(_Asked):
    """A loaded model. It never changes; any thread may use it, and several at once.

    `path` is a directory as the Hugging Face hub publishes it. What is asked for and missing is an error: nothing falls back to
    another backend, device or precision. `kv_cache` is the precision of keys and values, "int8" or "bf16" where Candle's `dtype` is
    "bf16", "int8" or "int4" on the CPU: in 8 bits a long conversation takes little more than half of the memory. `num_threads` compute for all calls together, 0: one for each core that the process may use.
    `context_tokens` and `max_memory_bytes` are limits, 0: as much as the model allows. `onnxruntime` is the file of ONNX Runtime's
    library, None: the environment's `ORT_DYLIB_PATH`, else the system's. `packed_cache_dir` is a directory in which Candle keeps
    weights as this processor wants them, for the next load; None: nowhere.
    """

    _process = library.smolvlm_process

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        backend: Backend = "auto",
        device: Device = "auto",
        device_index: int = 0,
        dtype: DType = "auto",
        kv_cache: DType = "auto",
        num_threads: int = 0,
        context_tokens: int = 0,
        max_memory_bytes: int = 0,
        onnxruntime: str | os.PathLike[str] | None = None,
        packed_cache_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        self.path = os.fspath(path)
        options = _abi.Options(
            struct_size=sizeof(_abi.Options),
            backend=_check.choice(backend, _abi.BACKENDS, "backend"),
            device=_check.choice(device, _abi.DEVICES, "device"),
            device_index=_check.integer(device_index, "device_index"),
            dtype=_check.choice(dtype, _abi.DTYPES, "dtype"),
            kv_cache=_check.choice(kv_cache, _abi.DTYPES, "kv_cache"),
            num_threads=_check.integer(num_threads, "num_threads"),
            context_tokens=_check.integer(context_tokens, "context_tokens"),
            max_memory_bytes=_check.integer(max_memory_bytes, "max_memory_bytes", _check.UINT64),
            onnxruntime_path=_path(onnxruntime, "onnxruntime"),
            packed_cache_dir=_path(packed_cache_dir, "packed_cache_dir"),
        )
        engine = _new(library.smolvlm_create, _check.text(self.path, "path"), byref(options))
        self._handle = Handle("model", engine, library.smolvlm_free)

    def _stream(self, request: Request, listen: bool = True) -> Stream:
        return self.session()._stream(request, listen)

    def session(self) -> Session:
        """Starts a conversation, which may outlive the model."""
        with self._handle as engine:
            return Session(_new(library.smolvlm_session_new, engine))

    def __enter__(self) -> Model:
        return self

    def __repr__(self) -> str:
        return f"smolvlm.Model({self.path!r})"


class Session(_Asked):
    """A conversation, from `Model.session()`: the model sees the earlier questions, their pictures and its answers.

    Any thread may use it, one generation at a time: a second one is a `BusyError`.
    """

    _process = library.smolvlm_session_process

    def __init__(self, session: c_void_p) -> None:
        self._handle = Handle("session", session, library.smolvlm_session_free)

    def _stream(self, request: Request, listen: bool = True) -> Stream:
        return Stream(lambda on_text: self._run(request, on_text if listen else None), self.cancel)

    def cancel(self) -> None:
        """Ends the generation that is running, soon: its answer has the text so far. An idle session is not affected.

        From any thread, and from a signal handler.
        """
        self._handle.visit(library.smolvlm_session_cancel)

    def reset(self) -> None:
        """Forgets the conversation."""
        with self._handle as session:
            check(library.smolvlm_session_reset(session))

    def __enter__(self) -> Session:
        return self
