"""Every kind of picture that Python has, and whether it is copied on its way to C."""

import array
import io
import shutil

import numpy as np
import pytest
from conftest import ANSWER, EXCHANGED, PICTURE, QUESTION
from PIL import Image

import smolvlm
from smolvlm import _abi


@pytest.fixture
def received(model, monkeypatch):
    """The picture of the last question as C received it: address, size, stride, width, height, format."""
    seen = []

    def process(session, request, out):
        image = request._obj.images[0]
        seen[:] = [image.data, image.data_size, image.stride, image.width, image.height, image.format]
        return _abi.library.smolvlm_session_process(session, request, out)

    monkeypatch.setattr(smolvlm.Session, "_process", staticmethod(process))
    return seen


@pytest.fixture(scope="module")
def frame(pillow_picture):
    return np.asarray(pillow_picture).copy()


def padded(frame):
    """The frame in a buffer whose rows are longer, as cameras have them."""
    height, width, depth = frame.shape
    buffer = np.zeros((height, width + 13, depth), np.uint8)
    buffer[:, :width] = frame
    return buffer[:, :width]


def with_fourth(frame):
    return np.dstack([frame, np.full(frame.shape[:2], 7, np.uint8)])


# Layouts that C can say: what is made of the frame, its channel order, and where the lent memory begins in it.
LENT = {
    "contiguous": (lambda f: f.copy(), "rgb", 0),
    "padded rows": (padded, "rgb", 0),
    "a region": (lambda f: np.pad(f, ((3, 5), (7, 2), (0, 0)))[3:-5, 7:-2], "rgb", 0),
    "every second row": (lambda f: np.repeat(f, 2, axis=0)[::2], "rgb", 0),
    "bgr": (lambda f: f[..., ::-1].copy(), "bgr", 0),
    "bgr turned to rgb by a view": (lambda f: f[..., ::-1].copy()[..., ::-1], "rgb", -2),
    "rgba": (with_fourth, "rgb", 0),
    "bgra": (lambda f: with_fourth(f[..., ::-1]), "bgr", 0),
    "three of four channels": (lambda f: with_fourth(f)[..., :3], "rgb", 0),
    "three of bgra, turned": (lambda f: with_fourth(f[..., ::-1])[..., 2::-1], "rgb", -2),
    "read-only": (lambda f: np.frombuffer(f.tobytes(), np.uint8).reshape(f.shape), "rgb", 0),
}
COPIED = {
    "columns first": np.asfortranarray,
    "upside down": lambda f: f[::-1].copy()[::-1],
    "mirrored": lambda f: f[:, ::-1].copy()[:, ::-1],
    "planes": lambda f: f.transpose(2, 0, 1).copy().transpose(1, 2, 0),
    "every second pixel": lambda f: np.repeat(f, 2, axis=1)[:, ::2],
    "three of four channels, the last fourth missing": lambda f: np.ndarray(
        f.shape, np.uint8, np.frombuffer(with_fourth(f).tobytes()[:-1], np.uint8), 0, (f.shape[1] * 4, 4, 1)
    ),
}


@pytest.mark.parametrize("layout", LENT)
def test_lent(model, received, frame, layout):
    make, channels, offset = LENT[layout]
    picture = make(frame)
    assert model.ask(picture, QUESTION, channels=channels, split=False).text == model.ask(frame, QUESTION, split=False).text
    model.ask(picture, QUESTION, channels=channels, max_new_tokens=1, split=False)
    assert received[0] == picture.ctypes.data + offset
    assert received[2] == picture.strides[0]


@pytest.mark.parametrize("layout", COPIED)
def test_copied(model, received, frame, layout):
    picture = COPIED[layout](frame)
    assert np.array_equal(picture, frame)
    assert model.ask(picture, QUESTION).text == ANSWER
    assert received[0] != picture.ctypes.data


def test_channel_order_is_obeyed(model, frame):
    assert model.ask(frame, QUESTION).text == ANSWER
    assert model.ask(frame, QUESTION, channels="bgr").text == EXCHANGED
    assert model.ask(frame[..., ::-1], QUESTION, channels="bgr").text == ANSWER
    assert model.ask(frame[..., ::-1], QUESTION).text == EXCHANGED


def test_no_byte_beyond_the_view_is_lent(received, model):
    """Views at the very end of their memory, down to one pixel."""
    for height, width in [(1, 1), (1, 5), (5, 1), (3, 4)]:
        buffer = np.zeros((height + 2, width + 3, 3), np.uint8)
        view = buffer[2:, 3:]
        model.ask(view, QUESTION, max_new_tokens=1, split=False)
        assert received[0] == view.ctypes.data
        assert received[0] + received[1] == buffer.ctypes.data + buffer.nbytes


def test_an_axis_of_one_has_no_step(received, model):
    for view in (np.zeros((1, 5, 3), np.uint8)[::-1], np.zeros((5, 1, 3), np.uint8)[:, ::-1], np.zeros((1, 5, 4), np.uint8)[::-1, :, :3]):
        model.ask(view, QUESTION, max_new_tokens=1, split=False)
        assert received[0] == view.ctypes.data


def test_gray(model, received, frame):
    gray = frame[..., 1].copy()
    answers = {model.ask(picture, QUESTION).text for picture in (gray, gray[..., None], np.repeat(gray[..., None], 3, axis=2))}
    assert len(answers) == 1
    model.ask(gray, QUESTION, max_new_tokens=1)
    assert received[0] == gray.ctypes.data and received[5] == _abi.FORMATS["gray8"]


def test_encoded(model, received, tmp_path):
    data = PICTURE.read_bytes()
    path = shutil.copy(PICTURE, tmp_path / "\u5199\u771f.jpg")
    for picture in (str(PICTURE), PICTURE, path, data, bytearray(data), memoryview(data), memoryview(bytearray(data))):
        assert model.ask(picture, QUESTION).text == ANSWER
    writable = np.frombuffer(bytearray(data), np.uint8)
    model.ask(memoryview(writable), QUESTION, max_new_tokens=1)
    assert received[0] == writable.ctypes.data


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "CMYK", "YCbCr"])
def test_pillow(model, pillow_picture, mode):
    assert model.ask(pillow_picture.convert(mode), QUESTION).text == ANSWER


def test_pillow_transparency_is_white(model, pillow_picture):
    """As the library has it from a file."""
    see_through = pillow_picture.convert("RGBA")
    see_through.putalpha(Image.linear_gradient("L").resize(see_through.size))
    file = io.BytesIO()
    see_through.save(file, "PNG")
    assert model.ask(see_through, QUESTION).prompt_tokens == model.ask(file.getvalue(), QUESTION).prompt_tokens
    assert model.ask(see_through, QUESTION).tokens == model.ask(file.getvalue(), QUESTION).tokens
    clear = Image.new("RGBA", (64, 64), (255, 0, 0, 0))
    white = Image.new("RGB", (64, 64), "white")
    assert smolvlm._pillow.pixels(clear, "image", True)[0] == white.tobytes()


def test_frame(model, received, frame):
    """The fields of a ROS message, whose data is an array of bytes."""
    rows = padded(frame[..., ::-1]).base
    data = array.array("B", rows.tobytes())
    message = smolvlm.Frame(data, frame.shape[1], frame.shape[0], "bgr8", rows.strides[0])
    assert model.ask(message, QUESTION).text == ANSWER
    assert received[0] == data.buffer_info()[0]


def test_several(model):
    one, two = model.ask(PICTURE, QUESTION), model.ask(PICTURE, PICTURE.read_bytes(), QUESTION)
    assert two.metrics.tiles == 2 * one.metrics.tiles
    assert model.ask("Is there a circle?").metrics.tiles == 0


BAD = {
    "image 0: an array of <f4 given, uint8 or uint16 needed: scale it, then .astype(numpy.uint8), or numpy.uint16 for depths": (
        TypeError, np.zeros((4, 4, 3), np.float32)),
    "image 0: shape (4, 4, 2), HxW, HxWx1, HxWx3 or HxWx4 needed": (smolvlm.InvalidArgumentError, np.zeros((4, 4, 2), np.uint8)),
    "image 0: shape (0, 4, 3), HxW, HxWx1, HxWx3 or HxWx4 needed": (smolvlm.InvalidArgumentError, np.zeros((0, 4, 3), np.uint8)),
    "image 0: shape (4,), HxW, HxWx1, HxWx3 or HxWx4 needed": (smolvlm.InvalidArgumentError, np.zeros(4, np.uint16)),
    "image 0: shape (1, 4, 4, 3), HxW, HxWx1, HxWx3 or HxWx4 needed": (smolvlm.InvalidArgumentError, np.zeros((1, 4, 4, 3), np.uint16)),
    "request.images[0].width: 40000 pixels, 1 to 32768 accepted": (smolvlm.InvalidArgumentError, np.zeros((1, 40000), np.uint8)),
    "image 0: a builtins.float given; a path, bytes, an array of uint8 or uint16, a Pillow image or a Frame needed": (TypeError, 1.5),
    "no_such.jpg: No such file or directory": (smolvlm.NotFoundError, "no_such.jpg"),
    "image 0: 0 bytes given": (smolvlm.InvalidArgumentError, b""),
    "image 0.encoding: 'yuv422' is none of rgb8, bgr8, rgba8, bgra8, mono8, 8UC1, 8UC3, 8UC4, mono16, 16UC1": (
        smolvlm.InvalidArgumentError, smolvlm.Frame(b"1", 1, 1, "yuv422")),
    "request.images[0].data_size: 11 bytes given, 12 needed": (smolvlm.InvalidArgumentError, smolvlm.Frame(bytes(11), 2, 2)),
    "image 0.width: -1 given, 0 to 4294967295 accepted": (smolvlm.InvalidArgumentError, smolvlm.Frame(bytes(11), -1, 2)),
    "image 0.data: a str given, bytes needed": (TypeError, smolvlm.Frame("text", 1, 1)),
}  # fmt: skip


@pytest.mark.parametrize("message", BAD)
def test_refused(model, message):
    kind, picture = BAD[message]
    with pytest.raises(kind) as error:
        model.ask(picture, QUESTION)
    assert str(error.value) == message
