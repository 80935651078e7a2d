"""One question as C takes it."""

from __future__ import annotations

from ctypes import byref, c_char_p, c_void_p, sizeof, string_at
from typing import TYPE_CHECKING, Any, Callable, Sequence, TypedDict

from . import _abi, _check
from ._answer import Answer, take
from ._errors import check
from ._images import Channels, Image, lend

#: Receives a piece of the answer and says whether to go on.
OnText = Callable[[str], bool]


class Parameters(TypedDict, total=False):
    """How to answer. All are optional, and take the model's own way where they are left out."""

    #: Instructions that precede the conversation. In a session, later questions leave it out or repeat it.
    system_prompt: str | None
    #: The order of an array's three or four channels: "rgb", or "bgr" as OpenCV has it.
    channels: Channels
    #: Scales a picture so that its longer edge has this many pixels before it is cut into tiles: less is faster and sees less.
    longest_edge: int
    #: False: each picture is one tile, the fastest and coarsest way.
    split: bool
    #: False: files and Pillow images are used as they are, whatever their EXIF orientation says. (Pillow itself turns TIFFs.)
    exif: bool
    #: Longest answer, in tokens; 256 where it is left out.
    max_new_tokens: int
    #: Randomness of the answer; 0: none, the likeliest token is always taken.
    temperature: float
    #: Chooses among this many likeliest tokens.
    top_k: int
    #: Chooses among the likeliest tokens that have this probability together.
    top_p: float
    #: Chooses among tokens that have at least this share of the likeliest one's probability.
    min_p: float
    #: Over 1: repeats less.
    repetition_penalty: float
    #: Taken from a token's score for each time that the answer has it already, -2 to 2.
    frequency_penalty: float
    #: Taken once from the score of each token that the answer has already, -2 to 2.
    presence_penalty: float
    #: The same request with the same seed has the same answer.
    seed: int
    #: Strings that end the answer where one appears; they are not part of it.
    stop: str | Sequence[str]
    #: Deadline for the whole call in seconds: pictures, prompt and answer. When it passes, the text so far is the answer, with
    #: `FinishReason.TIMEOUT`. One that has passed already, 0 or less, ends the call as soon as it looks.
    timeout: float | None
    #: True: special tokens of the answer are in its text, but for those that end it and padding. Models that write a document's
    #: layout in such tokens need it.
    keep_special_tokens: bool


if TYPE_CHECKING:
    from typing_extensions import Unpack as Unpack

_NAMES = frozenset(Parameters.__annotations__)
_INTEGERS = {"longest_edge": _check.UINT32, "max_new_tokens": _check.UINT32, "top_k": _check.UINT32, "seed": _check.UINT64}
_FLOATS = ("temperature", "top_p", "min_p", "repetition_penalty", "frequency_penalty", "presence_penalty")


class Request:
    """The struct, and everything that it points to."""

    def __init__(self, question: Sequence[Image], parameters: Parameters) -> None:
        unknown = sorted(set(parameters) - _NAMES)
        if unknown:
            raise TypeError(f"{unknown[0]}: not a parameter; there are {', '.join(sorted(_NAMES))}")
        if not question or not isinstance(question[-1], str):
            last = f"a {type(question[-1]).__name__}" if question else "nothing"
            raise TypeError(f"question: ends with {last}, a str needed: pictures first, then the text")
        *pictures, prompt = question
        self._keep: list[object] = []
        self.struct = _abi.Request(struct_size=sizeof(_abi.Request), prompt=_check.text(prompt, "prompt"))
        exif = parameters.get("exif")
        self._lend_images(pictures, parameters.get("channels", "rgb"), exif is None or bool(exif))
        self._set(parameters)

    def _lend_images(self, pictures: Sequence[Any], channels: Channels, exif: bool) -> None:
        _check.choice(channels, {"rgb": 0, "bgr": 1}, "channels")
        images = (_abi.Image * len(pictures))()
        for number, picture in enumerate(pictures):
            images[number], kept = lend(picture, channels, f"image {number}", exif)
            self._keep.append(kept)
        self.struct.images, self.struct.image_count = images, len(pictures)

    def _set(self, parameters: Parameters) -> None:
        struct, values = self.struct, {name: value for name, value in parameters.items() if value is not None}
        for name, most in _INTEGERS.items():
            setattr(struct, name, _check.integer(values.get(name, 0), name, most))
        for name in _FLOATS:
            setattr(struct, name, values.get(name, 0.0))
        struct.no_split, struct.ignore_exif = not values.get("split", True), not values.get("exif", True)
        struct.keep_special_tokens = bool(values.get("keep_special_tokens", False))
        if "system_prompt" in values:
            struct.system_prompt = _check.text(values["system_prompt"], "system_prompt")
        if "timeout" in values:
            struct.timeout_ms = _check.milliseconds(parameters["timeout"] or 0, "timeout")
        stop = parameters.get("stop", ())
        stop = [stop] if isinstance(stop, str) else stop
        struct.stop = (c_char_p * len(stop))(*(_check.text(text, f"stop[{number}]") for number, text in enumerate(stop)))
        struct.stop_count = len(stop)

    def run(self, process: Any, handle: c_void_p, on_text: OnText | None) -> Answer:
        """Calls `smolvlm_process` or `smolvlm_session_process`. What `on_text` raises ends the generation and is raised here."""
        raised: list[BaseException] = []

        def forward(_: Any, text: Any, size: int) -> int:
            try:
                return 0 if on_text is None or on_text(string_at(text, size).decode()) else 1
            except BaseException as error:  # an interrupt too: nothing may pass through C
                raised.append(error)
                return 1

        if on_text is not None:
            self.struct.on_text = _abi.TextCallback(forward)
        result = c_void_p()
        check(process(handle, byref(self.struct), byref(result)))
        answer = take(result)
        if raised:
            raise raised[0]
        return answer
