"""Answers read while they are written: to the end, half, in asyncio, and by nobody."""

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from conftest import ANSWER, DEMO, PICTURE, QUESTION

import smolvlm
from smolvlm import FinishReason
from smolvlm._stream import CAPACITY, Stream

#: What makes the model `endless` go on and on: each of the likely tokens is as likely as the next.
ENDLESS = {"temperature": 100.0, "top_k": 50, "max_new_tokens": 1500, "seed": 5}


def workers():
    return [thread for thread in threading.enumerate() if thread.name == "smolvlm"]


def settled(condition):
    """Waits for what another thread does soon; no measure of speed."""
    for _ in range(1000):
        if condition():
            return True
        time.sleep(0.01)
    return False


def test_iterator(model):
    stream = model.stream(PICTURE, QUESTION)
    with pytest.raises(smolvlm.InvalidArgumentError, match="answer: the stream has not ended yet"):
        stream.answer  # noqa: B018
    pieces = list(stream)
    assert len(pieces) > 5 and "".join(pieces) == stream.answer.text == ANSWER
    assert stream.answer.finish_reason is FinishReason.END_OF_TEXT
    assert list(stream) == []
    assert not workers()


def test_first_piece_comes_before_the_last_is_written(endless):
    """The engine waits for a slow reader, so it cannot have written all."""
    with endless.stream(PICTURE, QUESTION, **ENDLESS) as stream:
        first = next(stream)
        assert settled(lambda: len(stream._generation._pieces) == CAPACITY)
        time.sleep(0.05)
        assert len(stream._generation._pieces) == CAPACITY and workers()
    answer = stream.answer
    assert answer.finish_reason is FinishReason.CANCELLED
    assert answer.text.startswith(first) and len(answer.tokens) < 200
    assert not workers()


@pytest.mark.parametrize("how", ["close", "break", "drop"])
def test_closing_cancels(endless, how):
    stream = endless.stream(PICTURE, QUESTION, **ENDLESS)
    for _ in stream:
        break
    if how == "close":
        stream.close()
        assert stream.answer.finish_reason is FinishReason.CANCELLED
        assert list(stream) == []
        stream.close()
    else:
        del stream
        gc.collect()
    assert settled(lambda: not workers())


def test_closing_before_the_first_token(endless):
    for delay in (0, 0.001, 0.01, 0.05):
        stream = endless.stream(*[PICTURE] * 10, QUESTION, **ENDLESS)
        time.sleep(delay)
        stream.close()
        answer = stream.answer
        assert (answer.text, answer.finish_reason) == ("", FinishReason.CANCELLED)


def test_cancel_leaves_what_is_written(endless):
    for delay in (0, 0.3):
        stream = endless.stream(PICTURE, QUESTION, **ENDLESS)
        time.sleep(delay)
        stream.cancel()
        assert "".join(stream) == stream.answer.text
        assert stream.answer.finish_reason is FinishReason.CANCELLED


def test_errors_come_out(model):
    stream = model.stream("word " * 10_000)
    for _ in range(2):
        with pytest.raises(smolvlm.ContextOverflowError):
            next(stream)
    with pytest.raises(smolvlm.ContextOverflowError):
        stream.answer  # noqa: B018
    with pytest.raises(TypeError):
        model.stream(PICTURE)


def test_conversation(endless):
    session = endless.session()
    first = session.stream(PICTURE, QUESTION, **ENDLESS)
    next(first)
    with pytest.raises(smolvlm.BusyError):
        session.ask("And now?")
    first.close()
    second = session.stream("How many objects are there?")
    list(second)
    assert second.answer.metrics.cached_tokens > 0
    session.close()


def test_session_closed_meanwhile(endless):
    session = endless.session()
    stream = session.stream(PICTURE, QUESTION, **ENDLESS)
    next(stream)
    session.close()
    stream.close()
    assert stream.answer.finish_reason is FinishReason.CANCELLED


def test_async_iterator(model):
    async def main():
        stream = model.stream(PICTURE, QUESTION)
        pieces = [piece async for piece in stream]
        assert "".join(pieces) == stream.answer.text == ANSWER and len(pieces) > 5
        assert [piece async for piece in stream] == []
        return (await model.ask_async(PICTURE, "Which way does the arrow point?")).text

    assert asyncio.run(main()) == "Left."
    assert not workers()


def test_async_is_concurrent(model):
    """The loop runs between two pieces, and several streams at once."""
    ticks, taken = [], []

    async def tick():
        while True:
            ticks.append(1)
            await asyncio.sleep(0.001)

    async def read(number):
        async for _ in model.stream(PICTURE, QUESTION, max_new_tokens=8):
            taken.append(number)

    async def main():
        ticker = asyncio.create_task(tick())
        await asyncio.gather(read(0), read(1), read(2))
        ticker.cancel()

    asyncio.run(main())
    assert len(ticks) > 10
    assert {taken.count(number) for number in range(3)} == {len(list(model.stream(PICTURE, QUESTION, max_new_tokens=8)))}


def test_async_closing_cancels(endless):
    async def main():
        async with endless.stream(PICTURE, QUESTION, **ENDLESS) as stream:
            async for _ in stream:
                break
        assert stream.answer.finish_reason is FinishReason.CANCELLED
        task = asyncio.create_task(endless.ask_async(*[PICTURE] * 10, QUESTION, **ENDLESS))
        await asyncio.sleep(0.01)
        assert workers()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert not workers()


def test_loop_that_ends_in_between(endless):
    stream = endless.stream(PICTURE, QUESTION, **ENDLESS)

    async def main():
        async for _ in stream:
            break

    asyncio.run(main())
    for _ in stream:
        break
    stream.close()
    assert not workers()


def test_async_errors_come_out(model):
    with pytest.raises(smolvlm.ContextOverflowError):
        asyncio.run(model.ask_async("word " * 10_000))


def test_what_a_reader_raises_comes_out(model):
    """The way that an interrupt takes through a callback of C."""
    session = model.session()

    def on_text(text):
        raise KeyboardInterrupt(text)

    request = smolvlm._request.Request([PICTURE, QUESTION], {})
    with pytest.raises(KeyboardInterrupt, match="A"):
        session._run(request, on_text)


def test_interrupt_ends_a_question(endless):
    """Ctrl-C in the main thread, while pictures are prepared that take any processor much longer than that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    timer, session = threading.Timer(0.05, os.kill, [os.getpid(), signal.SIGINT]), endless.session()
    frame = smolvlm.Frame(bytes(8000 * 6000 * 3), 8000, 6000)
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        session.ask(*[frame] * 10, QUESTION, split=False, **ENDLESS)
    # A question that was cancelled before its first token leaves no trace in the conversation.
    assert session.ask(QUESTION, max_new_tokens=1).prompt_tokens == endless.ask(QUESTION, max_new_tokens=1).prompt_tokens
    timer.join()
    signal.signal(signal.SIGINT, before)
    assert not workers()


EXIT = f"""
import smolvlm
model = smolvlm.Model({str(DEMO)!r})
streams = [model.stream({str(PICTURE)!r}, "What is this?", temperature=100.0, max_new_tokens=2000) for _ in range(4)]
print(next(streams[0]) != "", flush=True)
del streams[1:3]
"""


def test_process_ends_with_open_streams():
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", EXIT], capture_output=True, text=True, timeout=120)
        assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")


def test_a_stream_needs_no_reader(model):
    """What nobody reads ends with its last reference, however many there are."""
    streams = [model.stream(PICTURE, QUESTION) for _ in range(8)]
    assert all(isinstance(stream, Stream) for stream in streams)
    del streams
    gc.collect()
    assert settled(lambda: not workers())
