"""The bundled model and its picture."""

import io
import shutil
from pathlib import Path

import pytest
from PIL import Image

import smolvlm

ROOT = Path(__file__).resolve().parents[3]
DEMO = ROOT / "models" / "demo"
PICTURE = DEMO / "test_image.jpg"
QUESTION = "What objects are in this image?"
ANSWER = "A red star, a blue arrow and an orange circle."
#: What the model makes of the picture with red and blue exchanged.
EXCHANGED = "A blue star, a red arrow and a blue circle."


@pytest.fixture(scope="session")
def model():
    return smolvlm.Model(DEMO)


@pytest.fixture(scope="session")
def endless(tmp_path_factory):
    """The bundled model with another end of its answers, which is never among the likely tokens."""
    folder = tmp_path_factory.mktemp("endless") / "model"
    shutil.copytree(DEMO, folder, ignore=shutil.ignore_patterns("SHA256SUMS"))
    for name, end, other in (
        ("config.json", '"eos_token_id": 639', '"eos_token_id": 2'),
        ("generation_config.json", '"eos_token_id": 639', '"eos_token_id": 2'),
        ("tokenizer.json", "<end_of_utterance>", "<end_of_nothing>"),
    ):
        text = (folder / name).read_text(encoding="utf-8")
        assert end in text
        (folder / name).write_text(text.replace(end, other), encoding="utf-8")
    return smolvlm.Model(folder)


@pytest.fixture(scope="session")
def pillow_picture():
    return Image.open(io.BytesIO(PICTURE.read_bytes())).convert("RGB")
