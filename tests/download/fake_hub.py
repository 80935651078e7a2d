"""A hub on this machine: the list of files and the files, as huggingface.co serves them, with faults on request."""

import hashlib
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

LFS_SUFFIXES = {".safetensors", ".onnx"}


class FakeHub(ThreadingHTTPServer):
    """Serves the files below `root` as the files of every repository. A fault has the name of a file, or `tree`."""

    daemon_threads = True

    def __init__(self, root):
        super().__init__(("127.0.0.1", 0), Handler)
        self.root = Path(root)
        self.requests = []  # (what, range header, authorization header)
        self.statuses = {}  # what -> HTTP statuses to answer with, first to last, before it works
        self.cuts = {}  # what -> numbers of bytes after which to hang up, first to last
        self.stalls = {}  # what -> number of bytes after which nothing more comes, once
        self.sizes = {}  # what -> size that the list says
        self.digests = {}  # what -> SHA-256 that the list says
        self.redirect = None  # base URL to which files are redirected
        self.ranges = True  # whether a part of a file can be asked for
        self.stopped = threading.Event()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, request, client_address):
        """A client that hangs up is no error: curl does so where it gets no ranges."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def asked(self, what):
        """The range headers of the requests for a file."""
        return [ranges for name, ranges, _ in self.requests if name == what]

    def close(self):
        self.stopped.set()
        self.shutdown()
        self.server_close()

    def tree(self):
        entries = [{"type": "directory", "oid": "0" * 40, "size": 0, "path": "onnx"}]
        for path in sorted(p for p in self.root.rglob("*") if p.is_file()):
            name, content = path.relative_to(self.root).as_posix(), path.read_bytes()
            size = self.sizes.get(name, len(content))
            git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            entry = {"type": "file", "oid": git, "size": size, "path": name}
            if path.suffix in LFS_SUFFIXES:
                digest = self.digests.get(name, hashlib.sha256(content).hexdigest())
                entry = {**entry, "oid": "1" * 40, "lfs": {"oid": digest, "size": size, "pointerSize": 134}}
                entry["path"] = entry.pop("path")  # the hub has `lfs` before it
            entries.append(entry)
        return json.dumps(entries, separators=(",", ":")).encode()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        hub, path = self.server, unquote(urlsplit(self.path).path)
        listing = path.startswith("/api/models/")
        what = "tree" if listing else path.partition("/resolve/")[2].partition("/")[2]
        hub.requests.append((what, self.headers["Range"], self.headers["Authorization"]))
        if hub.statuses.get(what):
            return self.answer(hub.statuses[what].pop(0), b"a page that explains")
        if listing:
            return self.answer(200, hub.tree())
        if hub.redirect:
            return self.answer(302, b"", Location=hub.redirect + self.path)
        file = hub.root / what
        if not file.is_file():
            return self.answer(404, b"Entry not found")
        content, start = file.read_bytes(), 0
        if hub.ranges and self.headers["Range"]:
            start = int(self.headers["Range"].partition("=")[2].partition("-")[0])
        if start >= len(content) > 0:
            return self.answer(416, b"")
        end = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self.answer(206 if start else 200, content[start:], what, **({"Content-Range": end} if start else {}))

    def answer(self, status, body, what=None, **headers):
        hub = self.server
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if hub.cuts.get(what):
            body, self.close_connection = body[: hub.cuts[what].pop(0)], True
        stall = hub.stalls.pop(what, None)
        self.wfile.write(body[:stall])
        self.wfile.flush()
        if stall is not None:
            hub.stopped.wait()
