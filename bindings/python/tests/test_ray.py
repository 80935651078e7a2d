"""examples/ray_batch.py on a cluster that is there already, of two cores: two workers, bad pictures, a second run, an interrupted run."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ANSWER, DEMO, PICTURE, ROOT

pytest.importorskip("ray")
import pyarrow.dataset  # noqa: E402

ENVIRONMENT = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
SCRIPT = ROOT / "bindings" / "python" / "examples" / "ray_batch.py"


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [Path(sys.executable).with_name("ray"), "start", "--head", "--block", "--num-cpus=2", f"--port={port}"]
    command += ["--node-ip-address=127.0.0.1", "--include-dashboard=false", "--object-store-memory=100000000"]
    log = tmp_path_factory.mktemp("ray") / "log"
    with open(log, "w") as out:
        cluster = subprocess.Popen(list(map(str, command)), env=ENVIRONMENT, stdout=out, stderr=out, start_new_session=True)
    for _ in range(600):
        if "Ray runtime started" in log.read_text() or cluster.poll() is not None:
            break
        time.sleep(0.1)
    assert cluster.poll() is None, log.read_text()
    yield f"127.0.0.1:{port}"
    os.killpg(cluster.pid, signal.SIGTERM)
    try:
        cluster.wait(5)
    except subprocess.TimeoutExpired:
        os.killpg(cluster.pid, signal.SIGKILL)


def start(address, images, out, *more):
    command = [sys.executable, SCRIPT, "--address", address, "--model", DEMO, "--images", images, "--out", out, "--batch", "4", *more]
    return subprocess.Popen(list(map(str, command)), env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def run(*arguments):
    driver = start(*arguments)
    output, _ = driver.communicate(timeout=300)
    assert driver.returncode == 0, output
    return output


def rows(out):
    return pyarrow.dataset.dataset(str(out), format="parquet", exclude_invalid_files=True).to_table().to_pylist()


def pictures(folder, count):
    (folder / "deep").mkdir(parents=True)
    for number in range(count):
        shutil.copy(PICTURE, folder / "deep" / f"{number:03}.jpg")
    return folder


def test_answers_and_resumes(address, tmp_path):
    images, out = pictures(tmp_path / "images", 10), tmp_path / "out"
    (images / "bad.png").write_text("no picture")
    (images / "notes.txt").write_text("no picture either")
    assert "11 images, 0 answered before, 11 to do" in run(address, images, out)
    found = rows(out)
    assert len(found) == 11
    (bad,) = (row for row in found if row["path"].endswith("bad.png"))
    assert bad["answer"] is None and "are not JPEG, PNG, WebP, BMP, GIF, TIFF or PBM/PGM" in bad["error"]
    assert {row["answer"] for row in found} == {ANSWER, None} and {row["finish_reason"] for row in found} == {"END_OF_TEXT", None}

    shutil.copy(PICTURE, images / "bad.png")  # mended
    shutil.copy(PICTURE, images / "new.jpg")
    assert "12 images, 10 answered before, 2 to do" in run(address, images, out)
    assert "12 images, 12 answered before, 0 to do" in run(address, images, out)
    answered = [row["path"] for row in rows(out) if row["answer"]]
    assert len(answered) == len(set(answered)) == 12


def test_interrupted(address, tmp_path):
    """The driver is killed in the middle: what was written stays, and is not asked again."""
    images, out = pictures(tmp_path / "images", 120), tmp_path / "out"
    driver = start(address, images, out)
    while driver.poll() is None and len(list(out.glob("*.parquet"))) < 3:
        time.sleep(0.05)
    driver.kill()
    driver.communicate()
    before = -1
    while before != len(rows(out)):  # the cluster notices soon, and what it was writing is written
        before = len(rows(out))
        time.sleep(2)
    assert 0 < before < 120
    assert f"120 images, {before} answered before, {120 - before} to do" in run(address, images, out)
    found = [row["path"] for row in rows(out)]
    assert len(found) == len(set(found)) == 120
