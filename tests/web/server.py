"""The server under test, started as its users start it; in f32, which answers alike on every processor."""

import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
IMAGE = ROOT / "models/demo/test_image.jpg"


class Server:
    def __init__(self, *options: str):
        self.log = tempfile.TemporaryFile("w+")
        command = [ROOT / "target/release/examples/web_api", "--port", "0", "--dtype", "f32", *options]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=self.log, text=True)
        line = self.process.stdout.readline()
        if " on http://" not in line:
            self.log.seek(0)
            raise RuntimeError(f"web_api: {line}{self.log.read()}")
        self.url = line.split()[-1]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()
        self.process.stdout.close()
        self.log.close()
