"""An answer that is read while it is written: a thread that generates, and a bounded queue between it and the reader."""

from __future__ import annotations

import asyncio
import atexit
import threading
from collections import deque
from typing import AsyncIterator, Callable, Deque, Iterator

from . import _fork
from ._answer import Answer
from ._errors import InvalidArgumentError, UnsupportedError
from ._request import OnText

#: Pieces that may wait for the reader; then the engine waits.
CAPACITY = 16
#: How often a generation that has not begun yet is told again to end.
_PATIENCE_SECONDS = 0.01


class _Generation(threading.Thread):
    """The writer. It does not know the stream, so that a forgotten one can go."""

    def __init__(self, process: Callable[[OnText], Answer], cancel: Callable[[], None]) -> None:
        super().__init__(name="smolvlm", daemon=True)
        self._process, self._cancel = process, cancel
        self._changed = threading.Condition()
        self._pieces: Deque[str] = deque()
        self._cancelled = False
        self.closed = False
        self.ended = False
        self.answer: Answer | None = None
        self.error: BaseException | None = None
        #: Called after each change, for a reader that does not wait on the condition.
        self.notify: Callable[[], None] = lambda: None
        _fork.tell(self)

    def after_fork(self) -> None:
        self._changed = threading.Condition()
        if not self.ended and threading.current_thread() is not self:
            self.error = UnsupportedError(
                "fork: the stream's pieces come from a thread of the parent, which its child does not have; load the model in the child and ask there"
            )
            self.ended = True

    def run(self) -> None:
        answer, error = None, None
        try:
            answer = self._process(self._put)
        except BaseException as raised:
            error = raised
        with self._changed:
            self.answer, self.error, self.ended = answer, error, True
            self._changed.notify_all()
        self.notify()

    def _put(self, piece: str) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self.closed or len(self._pieces) < CAPACITY)
            if not self.closed:
                self._pieces.append(piece)
            self._changed.notify_all()
        self.notify()
        return not (self.closed or self._cancelled)

    def get(self, wait: bool) -> str | None:
        """The next piece. None: there is none yet, or, after waiting, none any more."""
        with self._changed:
            if wait:
                self._changed.wait_for(lambda: self.closed or self.ended or bool(self._pieces))
            if self.closed or not self._pieces:
                return None
            self._changed.notify_all()
            return self._pieces.popleft()

    def cancel(self) -> None:
        self._cancelled = True  # for one that has not begun: the session's cancel finds it idle
        if self.is_alive():
            self._cancel()

    def close(self) -> None:
        """Cancels, and throws away what nobody will read."""
        with self._changed:
            self.closed = True
            self._changed.notify_all()
        self.cancel()

    def finish(self) -> None:
        """Closes, and waits for the end."""
        self.close()
        while self.is_alive():
            self.cancel()
            self.join(_PATIENCE_SECONDS)


class Stream:
    """An answer, piece by piece: `for piece in stream`, or `async for piece in stream`.

    Read to its end, or closed (by `with`, `async with`, `close()`, or when the last reference goes), it leaves nothing running.
    Closing early cancels the generation. Pictures must stay as they are until then.
    """

    def __init__(self, process: Callable[[OnText], Answer], cancel: Callable[[], None]) -> None:
        self._generation = _Generation(process, cancel)
        self._generation.start()

    @property
    def answer(self) -> Answer:
        """The whole answer, once the stream has ended; one that was closed early has the text so far."""
        if self._generation.error is not None:
            raise self._generation.error
        if self._generation.answer is None:
            raise InvalidArgumentError("answer: the stream has not ended yet")
        return self._generation.answer

    def cancel(self) -> None:
        """Ends the generation soon; what it has written can still be read. From any thread."""
        self._generation.cancel()

    def wait(self) -> None:
        """Reads to the end."""
        for _ in self:
            pass

    def close(self) -> None:
        """Ends the generation and waits until it has ended."""
        self._generation.finish()

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        piece = self._generation.get(wait=True)
        if piece is None:
            self._end()
            raise StopIteration
        return piece

    def _end(self) -> None:
        if not self._generation.closed:
            self._generation.join()
            if self._generation.error is not None:
                raise self._generation.error

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __aiter__(self) -> AsyncIterator[str]:
        return self

    async def __anext__(self) -> str:
        changed = self._watch()
        while True:
            changed.clear()
            # Whether it has ended is asked first: what comes between the two questions is then a piece.
            ended = self._generation.ended or self._generation.closed
            piece = self._generation.get(wait=False)
            if piece is not None:
                return piece
            if ended:
                self._end()
                raise StopAsyncIteration
            await changed.wait()

    def _watch(self) -> asyncio.Event:
        """An event of the running loop that each change sets."""
        loop, changed, generation = asyncio.get_running_loop(), asyncio.Event(), self._generation

        def notify() -> None:
            try:
                loop.call_soon_threadsafe(changed.set)
            except RuntimeError:
                pass  # the loop is closed, and nobody of it reads any more

        generation.notify = notify
        return changed

    async def aclose(self) -> None:
        """As `close()`, and the loop goes on meanwhile."""
        self._generation.close()
        while self._generation.is_alive():
            self._generation.cancel()
            await asyncio.sleep(_PATIENCE_SECONDS)

    async def __aenter__(self) -> Stream:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __del__(self) -> None:
        # Does not wait: this may be the generation's own thread.
        if hasattr(self, "_generation"):
            self._generation.close()


@atexit.register
def _finish_all() -> None:
    """A thread that comes back from C into an interpreter that is gone would end the process badly."""
    for thread in threading.enumerate():
        if isinstance(thread, _Generation):
            thread.finish()
