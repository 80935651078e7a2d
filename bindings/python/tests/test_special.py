"""Special tokens in an answer, and a picture without words."""

import json

import pytest
from conftest import ROOT

import smolvlm

GOLDEN = ROOT / "tests" / "golden"
CHECKPOINT = GOLDEN / "smolvlm2-defaults-bf16"


@pytest.fixture(scope="module")
def layout():
    """A random model, whose greedy answers hold special tokens."""
    with smolvlm.Model(CHECKPOINT, backend="candle", dtype="f32") as model:
        yield model


def test_special_tokens_are_kept(layout):
    cases = json.loads((CHECKPOINT / "golden.json").read_text(encoding="utf-8"))["cases"]
    texts = json.loads((GOLDEN / "special_tokens.json").read_text(encoding="utf-8"))[0]["cases"]
    for case, text in zip(cases, texts, strict=True):
        question = CHECKPOINT / case["image"], case["question"]
        parameters = {"longest_edge": case["longest_edge"], "split": case["split"], "max_new_tokens": len(case["greedy_ids"])}
        assert layout.ask(*question, **parameters).text == text["skipped"].lstrip()
        assert layout.ask(*question, **parameters, keep_special_tokens=False).text == text["skipped"].lstrip()
        with layout.stream(*question, **parameters, keep_special_tokens=True) as stream:
            pieces = list(stream)
        assert stream.answer.text == "".join(pieces) == text["kept"].lstrip()
        assert text["kept"] != text["skipped"]


def test_a_picture_without_words_is_a_question(layout):
    answer = layout.ask(CHECKPOINT / "single.png", "", max_new_tokens=3)
    assert len(answer.tokens) == 3
    with pytest.raises(smolvlm.InvalidArgumentError, match="^request.prompt: empty$"):
        layout.ask("")
