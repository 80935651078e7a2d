"""The package as its users get it: the wheel, its types, the oldest Python."""

import ast
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import ANSWER, DEMO, PICTURE, QUESTION, ROOT

import smolvlm

PACKAGE = ROOT / "bindings" / "python"
PROGRAMS = [*PACKAGE.glob("*/*.py"), *PACKAGE.glob("*.py"), *ROOT.glob("*.py"), *ROOT.glob("tools/side_by_side/*.py")]


def run(*command, **options):
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=600, **options)


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.name)
def test_syntax_of_3_8(path):
    ast.parse(path.read_text(), feature_version=(3, 8))


def test_mypy_strict(tmp_path):
    done = run(sys.executable, "-m", "mypy", "--cache-dir", tmp_path, cwd=PACKAGE)
    assert done.returncode == 0, done.stdout


USER = """
import numpy as np
from PIL import Image
import smolvlm

model = smolvlm.Model("models/demo", backend="candle", dtype="int8")
frame = np.zeros((480, 640, 3), np.uint8)
text: str = model.ask("a.jpg", b"", frame, Image.new("RGB", (8, 8)), "What?", channels="bgr", timeout=0.5, stop=["a"]).text
pieces: list[str] = [piece for piece in model.session().stream("What?")]
"""
WRONG = {
    'smolvlm.Model("m", backend="torch")': "arg-type",
    'model.ask("a.jpg", "What?", max_tokens=3)': "call-arg",
    'model.ask("a.jpg", "What?", timeout="1s")': "arg-type",
    'model.ask(1.5, "What?")': "arg-type",
    'model.ask("What?").metrics.prefil_ms': "attr-defined",
}


def test_types_of_a_user(tmp_path):
    """mypy, at its strictest, accepts what is right and finds what is wrong."""
    (tmp_path / "right.py").write_text(USER)
    (tmp_path / "wrong.py").write_text(USER + "".join(f"{line}\n" for line in WRONG))
    found = {}
    for name in ("right.py", "wrong.py"):
        environment = (
            {**os.environ, "MYPYPATH": str(Path(smolvlm.__file__).parents[1])} if PACKAGE in Path(smolvlm.__file__).parents else None
        )
        found[name] = run(sys.executable, "-m", "mypy", "--strict", "--cache-dir", tmp_path / "cache", name, cwd=tmp_path, env=environment)
    assert found["right.py"].returncode == 0, found["right.py"].stdout
    lines = [line for line in found["wrong.py"].stdout.splitlines() if ": error:" in line]
    assert [line.rsplit("[", 1)[1].rstrip("]") for line in lines] == list(WRONG.values()), lines


def test_wheel(tmp_path):
    """It carries the library, and works alone: no NumPy, no Pillow, no checkout."""
    library = ROOT / "target" / "release" / "libsmolvlm.so"
    done = run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path, PACKAGE)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.startswith(f"smolvlm-{smolvlm.__version__}-py3-none-linux_")
    with zipfile.ZipFile(wheel) as archive:
        assert archive.read("smolvlm/libsmolvlm.so") == library.read_bytes()
        assert "smolvlm/py.typed" in archive.namelist()
        archive.extractall(tmp_path / "alone")
    program = f"import sys, smolvlm; m = smolvlm.Model({str(DEMO)!r}); print(m.ask({str(PICTURE)!r}, {QUESTION!r})); print('numpy' in sys.modules)"
    environment = {key: value for key, value in os.environ.items() if key != "SMOLVLM_LIBRARY"}
    alone = run(sys.executable, "-S", "-c", program, cwd=tmp_path, env={**environment, "PYTHONPATH": str(tmp_path / "alone")})
    assert alone.stdout == f"{ANSWER}\nFalse\n", alone.stderr


@pytest.mark.parametrize("given", ["missing.so", "foreign"])
def test_wrong_library(tmp_path, given):
    """One that is not there, and one that is no libsmolvlm."""
    import _ctypes

    path = {"missing.so": tmp_path / "missing.so", "foreign": _ctypes.__file__}[given]
    environment = {**os.environ, "SMOLVLM_LIBRARY": str(path), "PYTHONPATH": str(Path(smolvlm.__file__).parents[1])}
    done = run(sys.executable, "-c", "import smolvlm", env=environment)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"ImportError: {path}: ")
