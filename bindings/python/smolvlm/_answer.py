"""What a generation gives back: the text, why it ended, its tokens, and what it cost."""

from __future__ import annotations

import ctypes
from ctypes import byref, c_size_t, sizeof
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from . import _abi
from ._abi import library
from ._errors import check


class FinishReason(IntEnum):
    """Why a generation ended; each is an answer, with the text so far."""

    NONE = 0
    #: The model ended its answer.
    END_OF_TEXT = 1
    #: `max_new_tokens` were made, or the context is full.
    MAX_TOKENS = 2
    #: One of `stop` appeared; the text ends before it.
    STOP_STRING = 3
    #: The session was cancelled, or the stream closed.
    CANCELLED = 4
    #: `timeout` passed.
    TIMEOUT = 5


@dataclass(frozen=True)
class Metrics:
    """What a generation took and used: milliseconds on a monotonic clock, and counts."""

    preprocess_ms: float
    vision_ms: float
    prefill_ms: float
    decode_ms: float
    time_to_first_token_ms: float
    total_ms: float
    tiles: int
    image_tokens: int
    prompt_tokens: int
    #: Of the prompt's tokens, those that the session had read already.
    cached_tokens: int
    generated_tokens: int
    #: What really computed, under the names that `Model` takes.
    backend: str
    device: str
    dtype: str
    #: What the KV cache had keys and values in.
    kv_cache: str

    @property
    def tokens_per_second(self) -> float:
        """Tokens of the answer by the time that writing it took."""
        return self.generated_tokens / self.decode_ms * 1e3 if self.decode_ms > 0 else 0.0


@dataclass(frozen=True)
class Answer:
    """An answer; `str(answer)` is its text."""

    text: str
    finish_reason: FinishReason
    #: The ids of the tokens that the model made, without the one that ends an answer.
    tokens: tuple[int, ...]
    #: The ids of the tokens that the model read, the conversation before and the places of the pictures included.
    prompt_tokens: tuple[int, ...]
    metrics: Metrics

    def __str__(self) -> str:
        return self.text


_NAMES = {
    field: {code: name for name, code in codes.items()}
    for field, codes in (("backend", _abi.BACKENDS), ("device", _abi.DEVICES), ("dtype", _abi.DTYPES), ("kv_cache", _abi.DTYPES))
}


def _metrics(result: Any) -> Metrics:
    found = _abi.Metrics(struct_size=sizeof(_abi.Metrics))
    check(library.smolvlm_result_metrics(result, byref(found)))
    values: dict[str, Any] = {name: getattr(found, name) for name in Metrics.__dataclass_fields__}
    for field, names in _NAMES.items():
        values[field] = names.get(values[field], str(values[field]))
    return Metrics(**values)


def take(result: Any) -> Answer:
    """The answer in a result of the C library, which is freed."""
    try:
        size = c_size_t()
        text = ctypes.string_at(library.smolvlm_result_text(result, byref(size)), size.value).decode()
        reason = FinishReason(library.smolvlm_result_finish_reason(result))
        tokens = library.smolvlm_result_tokens(result, byref(size))[: size.value]
        prompt_tokens = library.smolvlm_result_prompt_tokens(result, byref(size))[: size.value]
        return Answer(text, reason, tuple(tokens), tuple(prompt_tokens), _metrics(result))
    finally:
        library.smolvlm_result_free(result)
