"""The structs and functions of include/smolvlm.h for ctypes; tests/test_abi.py compares the two."""

from __future__ import annotations

import ctypes
import os
from ctypes import POINTER, Structure, c_char_p, c_double, c_float, c_int32, c_size_t, c_uint32, c_uint64, c_void_p
from pathlib import Path
from typing import Any

#: Receives the answer piece by piece: user_data, text, size; not 0 stops.
TextCallback = ctypes.CFUNCTYPE(c_int32, c_void_p, c_void_p, c_size_t)
#: Receives log messages: user_data, level, message.
LogCallback = ctypes.CFUNCTYPE(None, c_void_p, c_int32, c_char_p)


class Options(Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("backend", c_int32),
        ("device", c_int32),
        ("device_index", c_uint32),
        ("dtype", c_int32),
        ("num_threads", c_uint32),
        ("context_tokens", c_uint32),
        ("max_memory_bytes", c_uint64),
        ("onnxruntime_path", c_char_p),
        ("packed_cache_dir", c_char_p),
        ("kv_cache", c_int32),
        ("reserved", c_int32),
    ]


class Image(Structure):
    _fields_ = [
        ("data", c_void_p),
        ("data_size", c_size_t),
        ("stride", c_size_t),
        ("width", c_uint32),
        ("height", c_uint32),
        ("format", c_int32),
    ]


class Request(Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("prompt", c_char_p),
        ("system_prompt", c_char_p),
        ("images", POINTER(Image)),
        ("image_count", c_size_t),
        ("longest_edge", c_uint32),
        ("no_split", c_int32),
        ("ignore_exif", c_int32),
        ("max_new_tokens", c_uint32),
        ("temperature", c_float),
        ("top_k", c_uint32),
        ("top_p", c_float),
        ("min_p", c_float),
        ("repetition_penalty", c_float),
        ("timeout_ms", c_uint32),
        ("seed", c_uint64),
        ("stop", POINTER(c_char_p)),
        ("stop_count", c_size_t),
        ("on_text", TextCallback),
        ("user_data", c_void_p),
        ("keep_special_tokens", c_int32),
        ("reserved", c_int32),
        ("frequency_penalty", c_float),
        ("presence_penalty", c_float),
    ]


class Metrics(Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("preprocess_ms", c_double),
        ("vision_ms", c_double),
        ("prefill_ms", c_double),
        ("decode_ms", c_double),
        ("time_to_first_token_ms", c_double),
        ("total_ms", c_double),
        ("tiles", c_uint32),
        ("image_tokens", c_uint32),
        ("prompt_tokens", c_uint32),
        ("cached_tokens", c_uint32),
        ("generated_tokens", c_uint32),
        ("backend", c_int32),
        ("device", c_int32),
        ("dtype", c_int32),
        ("kv_cache", c_int32),
        ("reserved", c_int32),
    ]


#: The codes of the header's enums, by the names that Python users write; `auto` is 0.
BACKENDS = {"auto": 0, "candle": 1, "onnx": 2}
DEVICES = {"auto": 0, "cpu": 1, "cuda": 2, "metal": 3, "tensorrt": 4}
DTYPES = {"auto": 0, "f32": 1, "bf16": 2, "f16": 3, "int8": 4, "uint8": 5, "quantized": 6, "q4": 7, "q4f16": 8, "bnb4": 9, "int4": 10}
FORMATS = {"encoded": 0, "rgb8": 1, "bgr8": 2, "rgba8": 3, "bgra8": 4, "gray8": 5, "gray16": 6}
LOG_LEVELS = {"error": 1, "warn": 2, "info": 3, "debug": 4}

_HANDLE, _OUT = c_void_p, POINTER(c_void_p)
#: What each function returns and takes. A status is an int32_t here, so that a newer library's is no error in itself.
FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "smolvlm_create": (c_int32, [c_char_p, POINTER(Options), _OUT]),
    "smolvlm_process": (c_int32, [_HANDLE, POINTER(Request), _OUT]),
    "smolvlm_free": (None, [_HANDLE]),
    "smolvlm_session_new": (c_int32, [_HANDLE, _OUT]),
    "smolvlm_session_process": (c_int32, [_HANDLE, POINTER(Request), _OUT]),
    "smolvlm_session_cancel": (None, [_HANDLE]),
    "smolvlm_session_reset": (c_int32, [_HANDLE]),
    "smolvlm_session_free": (None, [_HANDLE]),
    "smolvlm_result_text": (c_void_p, [_HANDLE, POINTER(c_size_t)]),
    "smolvlm_result_finish_reason": (c_int32, [_HANDLE]),
    "smolvlm_result_tokens": (POINTER(c_uint32), [_HANDLE, POINTER(c_size_t)]),
    "smolvlm_result_prompt_tokens": (POINTER(c_uint32), [_HANDLE, POINTER(c_size_t)]),
    "smolvlm_result_metrics": (c_int32, [_HANDLE, POINTER(Metrics)]),
    "smolvlm_result_free": (None, [_HANDLE]),
    "smolvlm_version": (c_char_p, []),
    "smolvlm_version_number": (c_uint32, []),
    "smolvlm_build_info": (c_char_p, []),
    "smolvlm_status_name": (c_char_p, [c_int32]),
    "smolvlm_last_error": (c_char_p, []),
    "smolvlm_set_log_callback": (c_int32, [LogCallback, c_void_p]),
}

#: The header's version without its patch: 100 times major, plus minor.
HEADER_VERSION = 1
NAME = "libsmolvlm.so"
VARIABLE = "SMOLVLM_LIBRARY"


def find() -> Path:
    """The file of the library: the environment's, the wheel's, or that of the checkout around this package."""
    chosen = os.environ.get(VARIABLE)
    if chosen:
        return Path(chosen)
    here = Path(__file__).resolve()
    candidates = [here.parent / NAME, *(folder / "target" / "release" / NAME for folder in list(here.parents)[3:4])]
    for path in candidates:
        if path.is_file():
            return path
    raise ImportError(f"{NAME}: not at {' or '.join(map(str, candidates))}; build it with cargo, or set {VARIABLE}")


def load(path: Path) -> ctypes.CDLL:
    """The library with its functions declared. ctypes releases the GIL during a call of it."""
    try:
        library = ctypes.CDLL(str(path))
        for name, (result, arguments) in FUNCTIONS.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        raise ImportError(f"{path}: {error}") from error
    if library.smolvlm_version_number() // 100 != HEADER_VERSION:
        version = library.smolvlm_version().decode()
        raise ImportError(f"{path}: is of version {version}, {HEADER_VERSION // 100}.{HEADER_VERSION % 100} is needed")
    return library


library = load(find())
