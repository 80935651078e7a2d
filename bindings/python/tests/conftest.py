"""The bundled model and its picture."""

import io
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
def pillow_picture():
    return Image.open(io.BytesIO(PICTURE.read_bytes())).convert("RGB")
