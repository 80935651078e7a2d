"""One model, many threads."""

import random
import threading
from ctypes import c_void_p

import pytest
from conftest import ANSWER, DEMO, PICTURE, QUESTION

import smolvlm
from smolvlm._handle import Handle


def together(count, work):
    """Runs `work(number)` on so many threads at once; what one raises is raised here."""
    raised, start = [], threading.Barrier(count)

    def run(number):
        try:
            start.wait()
            work(number)
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if raised:
        raise raised[0]


def test_many_ask_at_once(model):
    answers = []
    together(6, lambda _: answers.extend(model.ask(PICTURE, QUESTION).text for _ in range(3)))
    assert answers == [ANSWER] * 18


def test_python_runs_while_the_engine_works(model):
    """Were the GIL held, this thread would wait at the event until the answer is there."""
    turns, asking, done = 0, threading.Event(), threading.Event()

    def ask():
        asking.set()
        model.ask(*[PICTURE] * 5, QUESTION, max_new_tokens=1)
        done.set()

    thread = threading.Thread(target=ask)
    thread.start()
    asking.wait()
    while not done.wait(0.001):
        turns += 1
    thread.join()
    assert turns > 20


def test_failures_stay_on_their_thread(model):
    def work(number):
        for _ in range(50):
            with pytest.raises(smolvlm.InvalidArgumentError, match=f"temperature: -{number + 1} given"):
                model.ask(QUESTION, temperature=-float(number + 1))

    together(4, work)


def test_one_session_one_generation(model):
    session, outcomes = model.session(), []

    def work(_):
        try:
            outcomes.append(session.ask(PICTURE, QUESTION).text)
        except smolvlm.BusyError:
            outcomes.append("busy")

    together(4, work)
    assert "busy" in outcomes and set(outcomes) - {"busy"}


def test_closing_while_others_ask():
    """Each call is answered or refused; none meets a model that is gone."""
    for round_ in range(5):
        model = smolvlm.Model(DEMO, num_threads=1)
        session = model.session()

        def work(number, model=model, session=session, random=random.Random(round_)):  # noqa: B008
            try:
                for _ in range(10):
                    if number == 0 and random.random() < 0.3:
                        model.close()
                    elif number == 1:
                        session.cancel()
                        if random.random() < 0.2:
                            session.close()
                    elif number == 2:
                        session.ask(PICTURE, QUESTION, max_new_tokens=1)
                    else:
                        list(model.stream(PICTURE, QUESTION, max_new_tokens=1))
            except smolvlm.InvalidArgumentError as error:
                assert "closed already" in str(error)

        together(5, work)


def test_the_last_user_frees():
    freed, visited = [], []
    handle = Handle("thing", c_void_p(1), freed.append)
    with handle as pointer:
        with handle:
            handle.close()
        assert not freed
        with pytest.raises(smolvlm.InvalidArgumentError, match="thing: closed already"), handle:
            pass
        handle.visit(visited.append)
    handle.close()
    handle.visit(visited.append)
    assert freed == visited == [pointer]


def test_any_order_of_freeing():
    for _ in range(3):
        model = smolvlm.Model(DEMO)
        session, stream = model.session(), model.stream(PICTURE, QUESTION)
        conversation = session.stream(PICTURE, QUESTION)
        things = [model, session, stream, conversation]
        random.Random(1).shuffle(things)
        del model, session, stream, conversation
        while things:
            things.pop()
