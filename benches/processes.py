"""Engines in processes of their own, driven over pipes: their turns can alternate, and the memory of each is its own."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
TICKS = os.sysconf("SC_CLK_TCK")
DISTURBED, PATIENCE = 0.05, 4


def busy_seconds():
    """Time of all processors together that was not idle, what the host took away among it."""
    user, nice, system, _idle, _wait, *rest = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:9])
    return (user + nice + system + sum(rest)) / TICKS


class CannotRun(Exception):
    """What an engine says that it cannot do."""


class Process:
    def __init__(self, command):
        """Starts it and waits until its model is loaded; `load_seconds` is what it says that took."""
        self.errors = tempfile.TemporaryFile("w+")  # a pipe that nobody reads would fill up
        command = [str(word) for word in command]
        self.child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True)
        (self.load_seconds,) = self._answer(expected="ready")

    def _answer(self, expected=None):
        line = self.child.stdout.readline()
        if not line:
            code = self.child.wait()
            self.errors.seek(0)
            raise CannotRun(f"exit code {code}: {(self.errors.read().strip().splitlines() or [''])[-1]}")
        if line.startswith("error:"):
            raise CannotRun(line.strip())
        words = line.split()
        return [float(word) for word in (words[1:] if expected else words)]

    def measure(self, measure, *numbers):
        self.child.stdin.write(" ".join(map(str, (measure, *numbers))) + "\n")
        self.child.stdin.flush()
        return self._answer()

    def undisturbed(self, measure, *numbers):
        """A measure while nobody else takes more than a twentieth of the processors, and what share others took. Where that never happens:
        the best of a few."""
        found = []
        for _ in range(PATIENCE):
            start, busy, own = time.perf_counter(), busy_seconds(), self.cpu_seconds()
            values = self.measure(measure, *numbers)
            others = (busy_seconds() - busy) - (self.cpu_seconds() - own)
            found.append((max(others, 0) / (time.perf_counter() - start) / os.cpu_count(), values))
            if found[-1][0] < DISTURBED:
                break
        return min(found)

    def cpu_seconds(self):
        fields = Path(f"/proc/{self.child.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def peak_mib(self):
        """The most memory that was resident, mapped files among it."""
        for line in Path(f"/proc/{self.child.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024

    def end(self):
        self.child.stdin.close()
        self.child.wait()
        self.child.stdout.close()
        self.errors.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.end()


def python_runner(kind, precision, model, threads):
    return [sys.executable, HERE / "runner.py", kind, precision, model, threads]


def forget_files(files):
    """Drops them from the page cache, so that the next reader has them from disk."""
    for path in files:
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
