"""How pictures come in and who may ask: base64 as clients write it, file URLs, other origins, streams."""

import base64
import json
import os
import shutil
import tempfile
import time
import unittest
import urllib.error
import urllib.request
from pathlib import Path

from server import IMAGE, Server

PLAIN = base64.b64encode(IMAGE.read_bytes()).decode()
ORIGIN = "http://pages.example"


def ask(server, url, status=200, **headers):
    content = [{"type": "text", "text": "How many objects are there?"}, {"type": "image_url", "image_url": {"url": url}}]
    return send(server, "/v1/chat/completions", {"messages": [{"role": "user", "content": content}]}, headers)


def send(server, path, body=None, headers={}, method=None):
    data = json.dumps(body).encode() if body is not None else None
    request = urllib.request.Request(server.url + path, data, headers, method=method)
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, answer.headers, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, error.read().decode()


class Doors(unittest.TestCase):
    def serve(self, *options):
        server = Server(*options)
        self.addCleanup(server.__exit__)
        return server

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
            (inside / "large.jpg").write_bytes(bytes((1 << 20) + 1))
            os.mkfifo(inside / "pipe.jpg")
            server = self.serve("--allow-image-dir", str(inside), "--max-body-mib", "1")
            base = inside.resolve().as_uri()
            for url in (f"{base}/a%20b.jpg", f"{base}/sub/c.jpg", f"{base}/link.jpg", f"{base}/sub/../a%20b.jpg",
                        base.replace("file://", "FILE://localhost") + "/sub/c.jpg"):
                status, _, text = ask(server, url)
                self.assertEqual((status, '"Three."' in text), (200, True), f"{url}: {text}")
            for url, why in ((f"{base}/away.jpg", "not within"), (f"{base}/away/o.jpg", "not within"),
                             (f"{base}/../out/o.jpg", "not within"), (f"{base}/%2e%2e/out/o.jpg", "not within"),
                             ("file:///no/such", "not within"), (f"{base}/pipe.jpg", "not a regular file"),
                             (f"{base}/sub", "not a regular file"), (base, "not a regular file"),
                             (f"{base}/large.jpg", "at most 1048576 bytes"), (f"{base}/none.jpg", "No such file"),
                             ("file://other/a.jpg", "another host"), (f"{base}/a.jpg%00", "a file URL is")):
                status, _, text = ask(server, url)
                self.assertEqual(status, 400, url)
                self.assertIn(why, text, url)

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

    def test_a_stream_that_waits_says_so(self):
        server = self.serve("--workers", "1", "--timeout-s", "3")
        hi = [{"role": "user", "content": "Hi"}]
        long = {"messages": hi, "stream": True, "temperature": 100, "seed": 1, "max_tokens": 1000}
        busy = urllib.request.urlopen(server.url + "/v1/chat/completions", json.dumps(long).encode())
        self.addCleanup(busy.close)
        start = time.monotonic()
        status, headers, text = send(server, "/v1/chat/completions", {"messages": hi, "stream": True})
        self.assertEqual((status, headers["X-Accel-Buffering"], headers["Cache-Control"]), (200, "no", "no-cache"))
        if time.monotonic() - start > 1.5:
            self.assertIn("reading the prompt", text.split("data:")[0])

    def test_models_say_that_pictures_are_accepted(self):
        model = json.loads(send(self.serve(), "/v1/models")[2])["data"][0]
        self.assertIs(model["capabilities"]["vision"], True)
        self.assertIn("image", model["architecture"]["input_modalities"])
        self.assertGreater(model["context_length"], 0)


if __name__ == "__main__":
    unittest.main()
