"""libsmolvlm through its C functions, as the header declares them; for tools and benchmarks."""

import json
import os
import re
import subprocess
from pathlib import Path

import cffi

ROOT = Path(__file__).parent.parent


def _declarations():
    """The header without what only a compiler understands."""
    header = re.sub(r"^#include.*$", "", (ROOT / "include" / "smolvlm.h").read_text(), flags=re.MULTILINE)
    return subprocess.run(["cc", "-E", "-P", "-"], input=header, capture_output=True, text=True, check=True).stdout


class Library:
    def __init__(self, path, model, backend="auto", dtype="auto", num_threads=0):
        self.ffi = cffi.FFI()
        self.ffi.cdef(_declarations())
        self.lib = self.ffi.dlopen(os.path.abspath(path))
        out = self.ffi.new("smolvlm_engine **")
        options = self._struct(
            "smolvlm_options",
            backend=getattr(self.lib, f"SMOLVLM_BACKEND_{backend.upper()}"),
            dtype=getattr(self.lib, f"SMOLVLM_DTYPE_{dtype.upper()}"),
            num_threads=num_threads,
        )
        self._check(self.lib.smolvlm_create(str(model).encode(), options, out))
        self.engine = self.ffi.gc(out[0], self.lib.smolvlm_free)

    def _struct(self, name, **fields):
        return self.ffi.new(f"{name} *", {"struct_size": self.ffi.sizeof(name), **fields})

    def _check(self, status):
        if status != self.lib.SMOLVLM_STATUS_OK:
            raise RuntimeError(self.ffi.string(self.lib.smolvlm_last_error()).decode())

    def ask(self, encoded, question, **fields):
        """The answer to a question about a picture (`encoded`: the bytes of its file), and its metrics. `fields`: of smolvlm_request."""
        data, prompt = self.ffi.from_buffer(encoded), self.ffi.new("char[]", question.encode())
        image = self.ffi.new("smolvlm_image *", {"data": data, "data_size": len(encoded), "format": self.lib.SMOLVLM_FORMAT_ENCODED})
        request = self._struct("smolvlm_request", prompt=prompt, images=image, image_count=1, **fields)
        out = self.ffi.new("smolvlm_result **")
        self._check(self.lib.smolvlm_process(self.engine, request, out))
        result = self.ffi.gc(out[0], self.lib.smolvlm_result_free)
        metrics = self._struct("smolvlm_metrics")
        self._check(self.lib.smolvlm_result_metrics(result, metrics))
        return self.ffi.string(self.lib.smolvlm_result_text(result, self.ffi.NULL)).decode(), metrics


def answer_questions(library, questions_path, answers_path):
    """Answers a questions.jsonl greedily; the answers go to another file of its kind."""
    with open(answers_path, "w") as out:
        for line in questions_path.read_text().splitlines():
            entry = json.loads(line)
            answer, _ = library.ask((questions_path.parent / entry["image"]).read_bytes(), entry["question"])
            out.write(json.dumps({**entry, "answer": answer}) + "\n")
