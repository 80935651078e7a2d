"""Worker processes: a child of fork is told at once what it cannot have, and loads a model of its own."""

import concurrent.futures
import multiprocessing
import os
import signal
import threading

import pytest
from conftest import ANSWER, DEMO, PICTURE, QUESTION

import smolvlm

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

ONNXRUNTIME = os.environ.get("ORT_DYLIB_PATH")
BACKENDS = ["candle", pytest.param("onnx", marks=pytest.mark.skipif(not ONNXRUNTIME, reason="ORT_DYLIB_PATH is not set"))]
#: More than a child takes that is told at once, and than one that loads and asks.
AT_ONCE, SECONDS = 5, 60

#: What a child of fork finds in its memory.
inherited = {}


def own_answer(backend):
    with smolvlm.Model(DEMO, backend=backend) as model:
        return model.ask(PICTURE, QUESTION).text


def told(call):
    try:
        return f"answered {call()!r}"
    except smolvlm.UnsupportedError as error:
        return str(error)


def ask_inherited(_=None):
    """What the parent's model, conversation and stream say here."""
    signal.alarm(AT_ONCE)
    model, session, stream = (inherited[name] for name in ("model", "session", "stream"))
    says = [
        told(lambda: model.ask(PICTURE, QUESTION)),
        told(model.session),
        told(lambda: session.ask(PICTURE, QUESTION)),
        told(session.reset),
        told(lambda: list(stream)),
        told(lambda: list(model.stream(PICTURE, QUESTION))),
    ]
    stream.close()
    session.close()
    model.close()
    signal.alarm(0)
    return says


def ask_inherited_and_own(backend):
    return ask_inherited(), own_answer(backend)


def load_in_worker(backend):
    inherited["own"] = smolvlm.Model(DEMO, backend=backend)


def ask_in_worker(_):
    return inherited["own"].ask(PICTURE, QUESTION).text


def send(pipe, work, *arguments):
    pipe.send(work(*arguments))
    pipe.close()


def in_process(method, work, *arguments, seconds=SECONDS):
    """What `work` answers in a process of its own; one that hangs is ended."""
    context = multiprocessing.get_context(method)
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=send, args=(theirs, work, *arguments))
    process.start()
    theirs.close()
    try:
        assert ours.poll(seconds), "hangs"
        answer = ours.recv()
        process.join(seconds)
        assert process.exitcode == 0
        return answer
    finally:
        process.kill()
        process.join()
        ours.close()


@pytest.fixture(params=BACKENDS)
def parent(request, endless):
    """A model that answers on one thread for as long as the test lasts, and its backend."""
    model = smolvlm.Model(endless.path, backend=request.param)
    session = model.session()
    # The reader does not read, and so the writer waits, in the middle of an answer.
    stream = session.stream(PICTURE, QUESTION, max_new_tokens=200)
    next(stream)
    inherited.update(model=model, session=session, stream=stream)
    yield request.param
    inherited.clear()
    stream.close()


@pytest.mark.parametrize("times", range(3))
def test_a_forked_child_is_told_and_loads_its_own(parent, times):
    says, own = in_process("fork", ask_inherited_and_own, parent)
    assert len(says) == 6
    assert all(said.startswith("fork: ") and "load" in said for said in says), says
    assert own == ANSWER
    assert inherited["model"].ask(PICTURE, QUESTION, max_new_tokens=1).tokens, "the parent goes on"


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_other_children_load_their_own(parent, method):
    assert in_process(method, own_answer, parent) == ANSWER


def test_a_pool_of_forked_workers(parent):
    """As a DataLoader's workers do: each loads in its initialiser and is asked again and again."""
    context = multiprocessing.get_context("fork")
    with concurrent.futures.ProcessPoolExecutor(2, context, load_in_worker, (parent,)) as pool:
        assert list(pool.map(ask_in_worker, range(6), timeout=SECONDS)) == [ANSWER] * 6
        says = pool.submit(ask_inherited).result(SECONDS)
        assert all(said.startswith("fork: ") for said in says), says


def test_a_handle_that_a_thread_holds_at_the_fork(model):
    """A Python thread may lose the GIL while it holds a handle's or a stream's lock."""
    inherited.update(model=model, session=model.session(), stream=model.stream(PICTURE, QUESTION))
    locks = [inherited["model"]._handle._lock, inherited["session"]._handle._lock, inherited["stream"]._generation._changed]
    held, end = threading.Event(), threading.Event()
    inherited["stream"]._generation.join()

    def hold():
        with locks[0], locks[1], locks[2]:
            held.set()
            end.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    try:
        says = in_process("fork", ask_inherited)
    finally:
        end.set()
        thread.join()
        inherited.clear()
    # The stream had ended before: all of it can be read.
    assert says.pop(4).startswith("answered ['A")
    assert all(said.startswith("fork: ") for said in says), says


def test_a_log_that_a_thread_writes_at_the_fork():
    import logging

    inside, end = threading.Event(), threading.Event()

    class Stay(logging.Handler):
        def emit(self, record):
            inside.set()
            end.wait()

        def createLock(self):  # noqa: N802
            self.lock = None

    logger = logging.Logger("stay", logging.DEBUG)
    logger.addHandler(Stay())
    smolvlm.log_to(logger)
    thread = threading.Thread(target=lambda: smolvlm.Model(DEMO).close())
    thread.start()
    try:
        assert inside.wait(SECONDS)
        assert in_process("fork", stop_log_and_load) == ANSWER
    finally:
        end.set()
        thread.join()
        smolvlm.log_to(None)


def stop_log_and_load():
    smolvlm.log_to(None)
    return own_answer("candle")
