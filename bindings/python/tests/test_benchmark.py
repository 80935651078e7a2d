"""benchmark.py on the bundled model: what it measures, writes and refuses. Its `python` backend needs torch, and is not run here."""

import importlib.util
import json
import os
import statistics
import subprocess
import sys

import pytest
from conftest import ANSWER, PICTURE, ROOT

sys.path.insert(0, str(ROOT / "tools"))
from side_by_side.plot import draw
from side_by_side.report import Results

ONNX = ["onnx:int8"] if "ORT_DYLIB_PATH" in os.environ else []


def benchmark(*arguments):
    command = [sys.executable, ROOT / "benchmark.py", *arguments]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300)


def test_bundled_model(tmp_path, model):
    backends = ["candle", "candle:int8", *ONNX]
    done = benchmark("-i", "test_image.jpg", "-s", "demo", "-b", *backends, "-t", "objects", "count", "-r", 2, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "benchmark.json").read_text())
    assert [(row["backend"], row["task"]) for row in found["results"]] == [(b, task) for task in ("objects", "count") for b in backends]
    assert found["synthetic"] == [] and "SYNTHETIC" not in done.stdout
    assert "answers differ" not in done.stdout
    for row in found["results"]:
        assert row["text"] == (ANSWER if row["task"] == "objects" else "Three.")
        assert row["dtype"] in (("f32", "int8") if row["backend"] == "candle" else ("int8",))
        # Each token and the one that ends the answer, less the first, which comes out of the prefill.
        question = "What objects are in this image?" if row["task"] == "objects" else "How many objects are there?"
        assert row["steps"] == len(model.ask(PICTURE, question).tokens)
        for measure in ("load", "first token", "speed", "peak memory"):
            assert len(row[measure]["values"]) == 2 and min(row[measure]["values"]) > 0
            assert row[measure]["median"] == statistics.median(row[measure]["values"])
    # A process of Python with the library and this model: tens of MiB, and not that of the process that runs the tests.
    assert all(20 < value < 150 for row in found["results"] for value in row["peak memory"]["values"])
    for name, start in (("benchmark.png", b"\x89PNG"), ("benchmark.svg", b"<?xml")):
        assert (tmp_path / name).read_bytes().startswith(start)
    assert "candle int8" in (tmp_path / "benchmark.svg").read_text()  # text of the legend, as a comment of its shapes


def results():
    """Two backends, the second twice as good throughout."""
    found = Results(["small"], ["python", "candle:int8"], ["objects"])
    for backend, factor in (("python", 1), ("candle:int8", 2)):
        for value in (100.0, 300.0, 200.0):
            question = {"task": "objects", "text": "", "dtype": "f32", "tiles": 1, "prompt_tokens": 9, "steps": 10}
            question.update(first_token_ms=value / factor, decode_ms=value / factor, total_ms=0.0)
            found.add("small", backend, [{"load_ms": value / factor}, question, {"peak_mib": value / factor}])
    return found


def test_medians_and_ratios():
    found = results()
    assert found.median("small", "python", "objects", "first token") == 200
    assert found.median("small", "candle:int8", "objects", "speed") == 100
    for measure in ("load", "first token", "speed", "peak memory"):
        assert found.ratio("small", "candle:int8", "objects", measure) == 2
        assert found.ratio("small", "python", "objects", measure) == 1
    assert "100 (50 to 150) 2.00x" in found.table()


def test_a_disturbed_run_says_so():
    found = results()
    assert "python, objects: first token spread from 100 to 300" in "\n".join(found.disturbed())
    for values in found.values.values():
        values[:] = [100.0, 110.0, 105.0]
    assert found.disturbed() == []


def test_axes_begin_at_zero(tmp_path, monkeypatch):
    from matplotlib import pyplot

    kept = []
    monkeypatch.setattr(pyplot, "close", kept.append)
    draw(results(), "title", "note", [tmp_path / "a.png"])
    panels = kept[0].axes
    assert len(panels) == 4
    for panel in panels:
        least, most = panel.get_ylim()
        assert least == 0 and most > 300 / (10 if "tokens" in panel.get_ylabel() else 1)
        heights = [bar.get_height() for bar in panel.patches]
        assert heights in ([200, 100], [50, 100])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-b", "llama"], "--backend: 'llama' is none of python, candle, onnx"),
        (["-b", "candle:int3"], "--backend: 'candle:int3' is none of"),
        (["-r", "0"], "--rounds: 0 given, 1 or more needed"),
        (["-i", "no_such.jpg"], "no_such.jpg: no such file"),
        (["-s", "medium", "--models", "/none"], "/none/SmolVLM-500M-Instruct: no checkpoint there; ./download_models.sh medium fetches it"),
        (["-s", "demo", "-b", "candle:q4"], "candle:q4: dtype: q4; candle has f32, bf16, int8 and int4 on the CPU"),
    ],
)
def test_refused(arguments, message):
    done = benchmark(*arguments)
    assert done.returncode in (1, 2) and message in done.stderr and "Traceback" not in done.stderr


@pytest.mark.skipif(importlib.util.find_spec("torch") is not None, reason="torch is here")
def test_python_says_what_it_lacks():
    done = benchmark("-s", "demo", "-b", "python")
    assert done.returncode == 1
    assert "python: No module named 'torch'; tools/requirements.txt lists what it needs" in done.stderr
