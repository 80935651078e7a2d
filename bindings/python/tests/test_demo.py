"""smolvlm_demo.py, as it is typed."""

import base64
import http.server
import json
import os
import re
import subprocess
import sys
import threading

import pytest
from conftest import ANSWER, PICTURE, QUESTION, ROOT

TOKEN = "hf_of_this_test"


def demo(*arguments, cwd=ROOT, **environment):
    variables = {key: value for key, value in os.environ.items() if key not in ("HF_TOKEN", "HF_HOME")}
    command = [sys.executable, ROOT / "smolvlm_demo.py", *arguments]
    return subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True, timeout=120, env={**variables, **environment})


def test_bundled_model(tmp_path):
    done = demo("-i", "test_image.jpg", "-p", QUESTION, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, ANSWER + "\n")
    assert re.match("candle on cpu in (f32|int8): 5 tiles, first token after ", done.stderr)


@pytest.mark.skipif("ORT_DYLIB_PATH" not in os.environ, reason="ORT_DYLIB_PATH names no ONNX Runtime")
def test_onnx():
    done = demo("--image", PICTURE, "--prompt", "How many objects are there?", "--backend", "onnx", "--dtype", "int8", "--threads", 1)
    assert (done.returncode, done.stdout) == (0, "Three.\n")
    assert done.stderr.startswith("onnx on cpu in int8: ")


def test_simulate_says_so_in_each_line(tmp_path):
    """And needs neither model nor package: the interpreter has no site-packages, and the library is not there."""
    command = [sys.executable, "-S", ROOT / "smolvlm_demo.py", "--simulate", "-p", "one\ntwo", "--model-size", "large"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env={"SMOLVLM_LIBRARY": "/none"})
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and len(lines) == 5 and not done.stderr
    assert all(line.startswith("SIMULATED ") for line in lines)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-i", "no_such.jpg"], "no_such.jpg: no such file"),
        (["--model", "no_such_model"], "smolvlm_demo.py: no_such_model: no such directory"),
        (["--backend", "torch"], "invalid choice: 'torch'"),
        (["--simulate", "--use-hf"], "--simulate and --use-hf: one of them"),
        (["--use-hf"], "smolvlm_demo.py: HF_TOKEN: not set"),
    ],
)
def test_refused(arguments, message):
    done = demo(*arguments)
    assert done.returncode in (1, 2) and message in done.stderr and "Traceback" not in done.stderr


class Api(http.server.BaseHTTPRequestHandler):
    """The chat endpoint of Hugging Face's API, answered by the bundled model."""

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append((self.path, request))
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            self.send_error(401)
            return
        picture, text = request["messages"][0]["content"]
        data = base64.b64decode(picture["image_url"]["url"].partition("base64,")[2])
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for piece in self.server.model.stream(data, text["text"], max_new_tokens=request["max_tokens"]):
            chunk = {"id": "1", "created": 1, "model": "demo", "system_fingerprint": "", "object": "chat.completion.chunk"}
            chunk["choices"] = [{"index": 0, "delta": {"role": "assistant", "content": piece}, "finish_reason": None}]
            self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
        self.wfile.write(b"data: [DONE]\n\n")

    def log_message(self, *_):
        pass


@pytest.fixture
def api(model):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Api) as server:
        server.model, server.requests = model, []
        server.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_hugging_face(api):
    done = demo("-i", PICTURE, "-p", QUESTION, "--use-hf", "--hf-model", api.url, "--max-new-tokens", "4", HF_TOKEN=TOKEN)
    assert (done.returncode, done.stdout) == (0, "A red star\n"), done.stderr
    ((path, request),) = api.requests
    assert path == "/v1/chat/completions" and request["stream"] is True
    url = request["messages"][0]["content"][0]["image_url"]["url"]
    assert url == f"data:image/jpeg;base64,{base64.b64encode(PICTURE.read_bytes()).decode()}"


def test_hugging_face_refuses(api):
    done = demo("--use-hf", "--hf-model", api.url, HF_TOKEN="hf_wrong")
    assert done.returncode == 1 and done.stdout == ""
    assert "401" in done.stderr and "Traceback" not in done.stderr
