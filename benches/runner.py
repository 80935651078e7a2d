#!/usr/bin/env python3
"""One engine in a process of its own, for the benchmarks: a measure and its numbers a line on standard input, seconds on standard output.

    runner.py KIND PRECISION MODEL_DIR THREADS [PACKED_CACHE_DIR]        KIND: candle, onnx, onnxruntime, transformers, torchao, openvino, mistral.rs

It says `ready` and the seconds that loading took, then answers; `error:` and a line of text is what it cannot do.
"""

import os
import sys
import time
from pathlib import Path

from common import LIBRARY


def load(kind, precision, model, threads, packed_cache_dir=None):
    if kind in ("candle", "onnx"):
        from ours import Ours

        return lambda: Ours(LIBRARY, model, kind, precision, threads, packed_cache_dir)
    if kind == "mistral.rs":
        from mistral import MistralRs

        import mistralrs  # noqa: F401

        return lambda: MistralRs(model, precision, threads)
    import peers

    __import__(kind)  # is no part of loading a model
    peer = {"onnxruntime": peers.OnnxRuntime, "transformers": peers.Transformers, "torchao": peers.Transformers, "openvino": peers.OpenVino}[kind]
    return lambda: peer(model, precision, threads)


def main():
    kind, precision, model, threads, *packed_cache_dir = sys.argv[1:]
    # What engines print, from below Python too, must not come between the numbers.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(text):
        print(text, file=out, flush=True)

    try:
        make = load(kind, precision, Path(model), int(threads), *packed_cache_dir)
        start = time.perf_counter()
        engine = make()
        say(f"ready {time.perf_counter() - start}")
        for line in sys.stdin:
            measure, *numbers = line.split()
            say(" ".join(map(str, getattr(engine, measure)(*map(int, numbers)))))
    except Exception as error:
        say(f"error: {type(error).__name__}: {error}".split("\n")[0])


if __name__ == "__main__":
    main()
