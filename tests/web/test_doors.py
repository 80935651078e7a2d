"""How pictures come in and who may ask: base64 as clients write it, file URLs, other origins, streams."""

import base64
import ctypes
import http.client
import json
import os
import shutil
import tempfile
import unittest
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from server import IMAGE, ROOT, Server

PLAIN = base64.b64encode(IMAGE.read_bytes()).decode()
ORIGIN = "http://pages.example"
#: Nothing here takes that long; a file that is waited for does.
PATIENCE = 60


def ask(server, url, status=200, **headers):
    content = [{"type": "text", "text": "How many objects are there?"}, {"type": "image_url", "image_url": {"url": url}}]
    return send(server, "/v1/chat/completions", {"messages": [{"role": "user", "content": content}]}, headers)


def send(server, path, body=None, headers={}, method=None):
    data = json.dumps(body).encode() if body is not None else None
    request = urllib.request.Request(server.url + path, data, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return answer.status, answer.headers, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, error.read().decode()


class Doors(unittest.TestCase):
    def serve(self, *options):
        server = Server(*options)
        self.addCleanup(server.__exit__)
        return server

    def endless(self):
        """The demo model with another end of its answers, which is never among the likely tokens."""
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        model = Path(folder.name, "model")
        shutil.copytree(ROOT / "models/demo", model, ignore=shutil.ignore_patterns("onnx", "SHA256SUMS"))
        for name, end, other in (("config.json", '"eos_token_id": 639', '"eos_token_id": 2'),
                                 ("generation_config.json", '"eos_token_id": 639', '"eos_token_id": 2'),
                                 ("tokenizer.json", "<end_of_utterance>", "<end_of_nothing>")):
            text = (model / name).read_text(encoding="utf-8")
            self.assertIn(end, text)
            (model / name).write_text(text.replace(end, other), encoding="utf-8")
        return str(model)

    def opened(self, path):
        """Whether somebody has opened the file since, as a function."""
        libc = ctypes.CDLL(None, use_errno=True)
        notes = libc.inotify_init1(os.O_NONBLOCK)
        self.addCleanup(os.close, notes)
        self.assertGreater(libc.inotify_add_watch(notes, bytes(path), 0x20), 0)

        def opened():
            try:
                return len(os.read(notes, 4096)) > 0
            except BlockingIOError:
                return False

        os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
        self.assertTrue(opened())
        return opened

    def occupy(self, server, questions):
        """Asks so many questions of some 1900 tokens each, whose answers nobody reads."""
        body = json.dumps({"messages": [{"role": "user", "content": "Hi"}], "temperature": 100, "top_k": 50, "seed": 2, "max_tokens": 4096})
        for _ in range(questions):
            connection = http.client.HTTPConnection(urlsplit(server.url).netloc)
            self.addCleanup(connection.close)
            connection.request("POST", "/v1/chat/completions", body)

    def test_base64_as_clients_write_it(self):
        server = self.serve()
        lines = "\r\n".join(PLAIN[i:i + 76] for i in range(0, len(PLAIN), 76))
        unpadded = PLAIN.rstrip("=")
        percent = PLAIN.replace("+", "%2B").replace("/", "%2F").replace("=", "%3D")
        safe = PLAIN.replace("+", "-").replace("/", "_")
        for url in (PLAIN, unpadded, safe, "data:image/jpeg;base64," + lines, "DATA:IMAGE/JPEG;BASE64," + PLAIN,
                    "data:image/jpeg;charset=utf-8;base64," + safe, "data:image/png;base64," + PLAIN,
                    "data:text/plain;base64;x=y," + percent, "image/jpeg;base64," + PLAIN):
            status, _, text = ask(server, url)
            self.assertEqual((status, '"Three."' in text), (200, True), f"{url[:60]}: {text[:200]}")
        for url, why in (("https://example.org/a.jpg", "fetches nothing"), ("file:///etc/passwd", "--allow-image-dir"),
                         ("photo.jpg", "base64"), ("data:image/jpeg;base64,", "empty")):
            status, _, text = ask(server, url)
            self.assertEqual(status, 400)
            self.assertIn(why, text)

    def test_file_urls(self):
        with tempfile.TemporaryDirectory() as folder:
            inside, outside = Path(folder, "in side"), Path(folder, "out")
            inside.mkdir(), outside.mkdir(), (inside / "sub").mkdir()
            for path in (inside / "a b.jpg", inside / "sub/c.jpg", outside / "o.jpg"):
                shutil.copy(IMAGE, path)
            (inside / "link.jpg").symlink_to("sub/c.jpg")
            (inside / "away.jpg").symlink_to(outside / "o.jpg")
            (inside / "away").symlink_to(outside)
            (inside / "nowhere.jpg").symlink_to(outside / "none.jpg")
            (inside / "large.jpg").write_bytes(bytes((1 << 20) + 1))
            os.mkfifo(inside / "pipe.jpg")
            opened = self.opened(inside / "pipe.jpg")
            server = self.serve("--allow-image-dir", str(inside), "--allow-image-dir", "/dev", "--max-body-mib", "1")
            base = inside.resolve().as_uri()
            for url in (f"{base}/a%20b.jpg", f"{base}/sub/c.jpg", f"{base}/link.jpg", f"{base}/sub/../a%20b.jpg",
                        base.replace("file://", "FILE://localhost") + "/sub/c.jpg"):
                status, _, text = ask(server, url)
                self.assertEqual((status, '"Three."' in text), (200, True), f"{url}: {text}")
            for url, why in ((f"{base}/away.jpg", "not within"), (f"{base}/away/o.jpg", "not within"),
                             (f"{base}/../out/o.jpg", "not within"), (f"{base}/%2e%2e/out/o.jpg", "not within"),
                             ("file:///no/such", "not within"), (f"{base}/pipe.jpg", "not a regular file"),
                             (f"{base}/away/none.jpg", "not within"), (f"{base}/nowhere.jpg", "not within"),
                             (f"{base}/%2E%2e%2Fout/o.jpg", "not within"),
                             (f"{base}/sub/%2e./../out/none.jpg", "not within"), (base + "side/o.jpg", "not within"),
                             ("file:///dev/zero", "not a regular file"), ("file:///dev/full", "not a regular file"),
                             (f"{base}/sub", "not a regular file"), (base, "not a regular file"),
                             (f"{base}/large.jpg", "at most 1048576 bytes"), (f"{base}/none.jpg", "No such file"),
                             ("file://other/a.jpg", "another host"), (f"{base}/a.jpg%00", "a file URL is")):
                status, _, text = ask(server, url)
                self.assertEqual(status, 400, url)
                self.assertIn(why, text, url)
            # Not even for a look at what it is: opening some devices makes them act.
            self.assertFalse(opened())

    def test_pages_of_other_origins(self):
        server = self.serve("--cors-origin", ORIGIN, "--api-key", "a key", "--max-body-mib", "1")
        asks = {"Origin": ORIGIN, "Access-Control-Request-Method": "POST", "Access-Control-Request-Private-Network": "true",
                "Access-Control-Request-Headers": "authorization,content-type,x-stainless-os"}
        status, headers, _ = send(server, "/v1/chat/completions", headers=asks, method="OPTIONS")
        self.assertEqual(status, 200)
        self.assertEqual(headers["Access-Control-Allow-Origin"], ORIGIN)
        self.assertEqual(headers["Access-Control-Allow-Private-Network"], "true")
        for name in ("authorization", "content-type", "x-stainless-os"):
            self.assertIn(name, headers["Access-Control-Allow-Headers"])
        key = {"Authorization": "Bearer a key", "Origin": ORIGIN}
        for path, body, given, expected in (
                ("/v1/models", None, key, 200), ("/v1/models", None, {"Origin": ORIGIN}, 401), ("/nothing", None, key, 404),
                ("/v1/chat/completions", {"x": "y" * (1 << 20)}, key, 413), ("/v1/chat/completions", {}, key, 400),
                ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}], "stream": True}, key, 200)):
            status, headers, _ = send(server, path, body, given)
            self.assertEqual((status, headers["Access-Control-Allow-Origin"]), (expected, ORIGIN), path)
            self.assertIn("origin", ",".join(headers.get_all("Vary")).lower())
        _, headers, _ = send(server, "/health", headers={"Origin": "http://other.example"})
        self.assertIsNone(headers["Access-Control-Allow-Origin"])

    def test_pages_see_that_a_queue_is_full(self):
        server = self.serve("--model", self.endless(), "--workers", "1", "--queue", "0", "--max-new-tokens", "4096",
                            "--cors-origin", "*")
        asks = {"Origin": ORIGIN, "Access-Control-Request-Method": "POST"}
        status, headers, _ = send(server, "/analyze", headers=asks, method="OPTIONS")
        self.assertEqual((status, headers["Access-Control-Allow-Origin"]), (200, "*"))
        self.occupy(server, 1)
        hi = {"messages": [{"role": "user", "content": "Hi"}]}
        while True:
            status, headers, _ = send(server, "/v1/chat/completions", hi, {"Origin": ORIGIN})
            self.assertEqual(headers["Access-Control-Allow-Origin"], "*")
            if status != 200:
                break
        self.assertEqual((status, headers["Access-Control-Expose-Headers"]), (429, "retry-after"))
        self.assertGreaterEqual(int(headers["Retry-After"]), 1)
        for path in ("/health", "/nothing", "/metrics"):
            self.assertEqual(send(server, path, headers={"Origin": "null"})[1]["Access-Control-Allow-Origin"], "*")

    def test_a_stream_that_waits_says_so_and_then_what_went_wrong(self):
        server = self.serve("--model", self.endless(), "--workers", "1", "--max-new-tokens", "4096", "--cors-origin", ORIGIN)
        # Tens of thousands of tokens: more than any processor makes in the time below.
        self.occupy(server, 60)
        late = {"messages": [{"role": "user", "content": "Hi"}], "stream": True, "timeout_ms": 7000}
        status, headers, text = send(server, "/v1/chat/completions", late, {"Origin": ORIGIN})
        self.assertEqual((status, headers["X-Accel-Buffering"], headers["Cache-Control"]), (200, "no", "no-cache"))
        self.assertEqual((headers["Content-Type"], headers["Access-Control-Allow-Origin"]), ("text/event-stream", ORIGIN))
        *comments, error, done, rest = text.split("\n\n")
        # One when the head is sent, one five seconds later.
        self.assertEqual(comments, [": reading the prompt"] * 2)
        error = json.loads(error.removeprefix("data: "))["error"]
        self.assertEqual((error["code"], error["type"], error["param"]), ("timeout", "server_error", None))
        self.assertEqual((done, rest), ("data: [DONE]", ""))

    def test_models_say_that_pictures_are_accepted(self):
        model = json.loads(send(self.serve(), "/v1/models")[2])["data"][0]
        self.assertIs(model["capabilities"]["vision"], True)
        self.assertIn("image", model["architecture"]["input_modalities"])
        self.assertGreater(model["context_length"], 0)


if __name__ == "__main__":
    unittest.main()
