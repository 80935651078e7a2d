"""Questions, their parameters, conversations, and what goes wrong."""

import logging
import os

import numpy as np
import pytest
from conftest import ANSWER, DEMO, PICTURE, QUESTION

import smolvlm
from smolvlm import FinishReason, Status


def test_answer(model):
    answer = model.ask(PICTURE, QUESTION)
    assert str(answer) == answer.text == ANSWER
    assert answer.finish_reason is FinishReason.END_OF_TEXT
    m = answer.metrics
    assert (m.backend, m.device) == ("candle", "cpu")
    assert m.dtype in ("f32", "int8")  # the processor decides
    assert m.generated_tokens == len(answer.tokens) and m.prompt_tokens == len(answer.prompt_tokens)
    assert m.image_tokens == 16 * m.tiles > 0 and m.cached_tokens == 0
    assert 0 < m.preprocess_ms + m.vision_ms + m.prefill_ms <= m.time_to_first_token_ms < m.total_ms
    assert m.tokens_per_second == pytest.approx(m.generated_tokens / m.decode_ms * 1000)


@pytest.mark.parametrize("dtype", ["f32", "bf16", "int8", "int4"])
def test_dtype(dtype):
    with smolvlm.Model(str(DEMO), backend="candle", dtype=dtype, num_threads=1) as model:
        answer = model.ask(PICTURE, "Which way does the arrow point?")
    assert (answer.text, answer.metrics.dtype) == ("Left.", dtype)


@pytest.mark.parametrize("dtype, kv_cache", [("int8", "bf16"), ("bf16", "int8")])
def test_kv_cache(dtype, kv_cache):
    with smolvlm.Model(DEMO, backend="candle", dtype=dtype, kv_cache=kv_cache) as model:
        answer = model.ask(PICTURE, "Which way does the arrow point?")
    assert (answer.text, answer.metrics.dtype, answer.metrics.kv_cache) == ("Left.", dtype, kv_cache)


@pytest.mark.skipif("ORT_DYLIB_PATH" not in os.environ, reason="ORT_DYLIB_PATH names no ONNX Runtime")
def test_onnx():
    model = smolvlm.Model(DEMO, backend="onnx", dtype="f16", onnxruntime=os.environ["ORT_DYLIB_PATH"])
    answer = model.ask(PICTURE, QUESTION)
    assert (answer.text, answer.metrics.backend, answer.metrics.dtype) == (ANSWER, "onnx", "f16")


def test_parameters_reach_the_engine(model):
    first = model.ask(PICTURE, QUESTION, max_new_tokens=3)
    assert (len(first.tokens), first.finish_reason) == (3, FinishReason.MAX_TOKENS)
    stopped = model.ask(PICTURE, QUESTION, stop=["nothing", " blue"])
    assert (stopped.text, stopped.finish_reason) == ("A red star, a", FinishReason.STOP_STRING)
    assert model.ask(PICTURE, QUESTION, stop=" blue").text == stopped.text
    assert model.ask(PICTURE, QUESTION, stop=()).text == ANSWER
    assert model.ask(PICTURE, QUESTION, split=False).metrics.tiles == 1
    tiles = [model.ask(PICTURE, QUESTION, longest_edge=edge).metrics.tiles for edge in (64, 128, 256)]
    assert tiles == sorted(set(tiles))
    system = model.ask(PICTURE, QUESTION, system_prompt="Be brief.", max_new_tokens=1)
    assert len(system.prompt_tokens) > len(first.prompt_tokens)
    wild = {model.ask(PICTURE, QUESTION, temperature=3.0, seed=seed, top_k=50).text for seed in (1, 1, 2, 3)}
    assert len(wild) > 1
    drawn = [model.ask(PICTURE, QUESTION, temperature=3.0, seed=2**64 - 1).tokens for _ in range(2)]
    assert drawn[0] == drawn[1]
    for likeliest in ({"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}):
        assert model.ask(PICTURE, QUESTION, temperature=3.0, seed=1, **likeliest).text == ANSWER
    assert model.ask(PICTURE, QUESTION, repetition_penalty=5.0).text != ANSWER


def test_exif(model):
    """A file that says it lies on its side: turned unless told otherwise."""
    from io import BytesIO

    from PIL import Image

    picture, file = Image.open(PICTURE), BytesIO()
    exif = picture.getexif()
    exif[0x112] = 8
    picture.rotate(-90, expand=True).save(file, "PNG", exif=exif)
    arrow = "Which way does the arrow point?"
    assert model.ask(file.getvalue(), arrow).text == "Left."
    assert model.ask(file.getvalue(), arrow, exif=False).text == "Up."


BAD_PARAMETERS = {
    "max_new_tokens: -1 given, 0 to 4294967295 accepted": {"max_new_tokens": -1},
    "seed: 18446744073709551616 given, 0 to 18446744073709551615 accepted": {"seed": 2**64},
    "channels: 'grb' is none of rgb, bgr": {"channels": "grb"},
    "timeout: nan seconds given": {"timeout": float("nan")},
    "stop[1]: character 1 is NUL": {"stop": ["a", "b\0"]},
    "system_prompt: character 0 is half of a surrogate pair": {"system_prompt": "\ud800"},
    "request.temperature: -1 given, 0 to 100 accepted": {"temperature": -1.0},
}


@pytest.mark.parametrize("message", BAD_PARAMETERS)
def test_bad_parameter(model, message):
    with pytest.raises(smolvlm.InvalidArgumentError) as error:
        model.ask(PICTURE, QUESTION, **BAD_PARAMETERS[message])
    assert (str(error.value), error.value.status) == (message, Status.INVALID_ARGUMENT)
    assert isinstance(error.value, ValueError)


def test_wrong_type(model):
    for arguments, parameters, message in [
        ((PICTURE, QUESTION), {"max_new_tokens": 1.5}, "max_new_tokens: a float given, an int needed"),
        ((PICTURE, QUESTION), {"max_tokens": 1}, "max_tokens: not a parameter; there are channels, exif"),
        ((QUESTION, PICTURE), {}, "question: ends with a PosixPath, a str needed"),
        ((), {}, "question: ends with nothing, a str needed"),
        ((PICTURE, QUESTION), {"stop": [3]}, "stop[0]: a int given, a str needed"),
    ]:
        with pytest.raises(TypeError) as error:
            model.ask(*arguments, **parameters)
        assert str(error.value).startswith(message)
    assert model.ask(PICTURE, QUESTION, max_new_tokens=np.int64(1)).metrics.generated_tokens == 1


def test_statuses(tmp_path, model):
    with pytest.raises(smolvlm.NotFoundError) as missing:
        smolvlm.Model(tmp_path / "none")
    assert missing.value.status is Status.NOT_FOUND and isinstance(missing.value, FileNotFoundError)
    assert str(tmp_path / "none") in str(missing.value)
    with pytest.raises(smolvlm.UnsupportedError):
        smolvlm.Model(DEMO, device="cuda", backend="candle")
    with pytest.raises(smolvlm.OutOfMemoryError):
        smolvlm.Model(DEMO, max_memory_bytes=1000)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(smolvlm.InvalidModelError):
        smolvlm.Model(tmp_path)
    with pytest.raises(smolvlm.ContextOverflowError) as long:
        model.ask("word " * 10_000)
    assert isinstance(long.value, smolvlm.Error)
    with pytest.raises(smolvlm.InvalidArgumentError, match="backend: 'torch' is none of auto, candle, onnx"):
        smolvlm.Model(DEMO, backend="torch")
    with pytest.raises(smolvlm.InvalidArgumentError, match="kv_cache: 'int7' is none of auto, f32, bf16"):
        smolvlm.Model(DEMO, kv_cache="int7")
    with pytest.raises(smolvlm.UnsupportedError, match="kv_cache: q4; candle has int8 and bf16 where dtype is int8"):
        smolvlm.Model(DEMO, backend="candle", dtype="int8", kv_cache="q4")
    with pytest.raises(smolvlm.InvalidArgumentError, match="num_threads: 4294967296 given"):
        smolvlm.Model(DEMO, num_threads=2**32)
    with pytest.raises(smolvlm.InvalidArgumentError, match="context_tokens: 99999 given"):
        smolvlm.Model(DEMO, context_tokens=99999)


@pytest.mark.parametrize("timeout", [1e-9, 0, -3.0])
def test_deadline(model, timeout):
    answer = model.ask(PICTURE, QUESTION, timeout=timeout)
    assert (answer.finish_reason, answer.text) == (FinishReason.TIMEOUT, "")
    assert model.ask(PICTURE, QUESTION, timeout=600).text == ANSWER
    assert model.ask(PICTURE, QUESTION, timeout=float("inf")).text == ANSWER
    assert model.ask(PICTURE, QUESTION, timeout=None).text == ANSWER


def test_conversation(model):
    with model.session() as session:
        first = session.ask(PICTURE, QUESTION)
        second = session.ask("How many objects are there?")
        assert (first.text, second.text) == (ANSWER, "Three.")
        assert second.metrics.cached_tokens >= len(first.prompt_tokens)
        assert second.prompt_tokens[: len(first.prompt_tokens)] == first.prompt_tokens
        session.reset()
        assert session.ask(PICTURE, QUESTION).metrics.cached_tokens == 0
    with pytest.raises(smolvlm.InvalidArgumentError, match="session: closed already"):
        session.ask("And now?")
    session.cancel()
    session.close()


def test_session_outlives_model():
    model = smolvlm.Model(DEMO)
    session = model.session()
    model.close()
    with pytest.raises(smolvlm.InvalidArgumentError, match="model: closed already"):
        model.ask(QUESTION)
    assert session.ask(PICTURE, QUESTION).text == ANSWER


def test_log(caplog):
    smolvlm.log_to(logging.getLogger("robot"))
    with caplog.at_level(logging.INFO, "robot"):
        smolvlm.Model(DEMO)
    smolvlm.log_to(None)
    assert any(record.name == "robot" and "candle" in record.message for record in caplog.records)
    caplog.clear()
    with caplog.at_level(logging.INFO, "robot"):
        smolvlm.Model(DEMO)
    assert not caplog.records
