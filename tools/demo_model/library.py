"""The answers of libsmolvlm, through its C functions as the header declares them."""

import json
import re
import subprocess
from pathlib import Path

import cffi

from .evaluate import read_lines

ROOT = Path(__file__).parent.parent.parent


def _declarations():
    """The header without what only a compiler understands."""
    header = re.sub(r"^#include.*$", "", (ROOT / "include" / "smolvlm.h").read_text(), flags=re.MULTILINE)
    return subprocess.run(["cc", "-E", "-P", "-"], input=header, capture_output=True, text=True, check=True).stdout


class Library:
    def __init__(self, path, model):
        self.ffi = cffi.FFI()
        self.ffi.cdef(_declarations())
        self.lib = self.ffi.dlopen(str(path))
        out = self.ffi.new("smolvlm_engine **")
        self._check(self.lib.smolvlm_create(str(model).encode(), self.ffi.NULL, out))
        self.engine = self.ffi.gc(out[0], self.lib.smolvlm_free)

    def _check(self, status):
        if status != self.lib.SMOLVLM_STATUS_OK:
            raise RuntimeError(self.ffi.string(self.lib.smolvlm_last_error()).decode())

    def ask(self, encoded, question):
        """`encoded`: the bytes of an image file."""
        data, prompt = self.ffi.from_buffer(encoded), self.ffi.new("char[]", question.encode())
        image = self.ffi.new("smolvlm_image *", {"data": data, "data_size": len(encoded), "format": self.lib.SMOLVLM_FORMAT_ENCODED})
        size = self.ffi.sizeof("smolvlm_request")
        request = self.ffi.new("smolvlm_request *", {"struct_size": size, "prompt": prompt, "images": image, "image_count": 1})
        out = self.ffi.new("smolvlm_result **")
        self._check(self.lib.smolvlm_process(self.engine, request, out))
        result = self.ffi.gc(out[0], self.lib.smolvlm_result_free)
        return self.ffi.string(self.lib.smolvlm_result_text(result, self.ffi.NULL)).decode()


def answer_with_library(library_path, model, questions_path, answers_path):
    """The same questions as `answer_with_reference`, greedy, in float32."""
    library = Library(library_path, model)
    with open(answers_path, "w") as out:
        for entry in read_lines(questions_path):
            answer = library.ask((questions_path.parent / entry["image"]).read_bytes(), entry["question"])
            out.write(json.dumps({**entry, "answer": answer}) + "\n")
