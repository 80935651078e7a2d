#!/usr/bin/env python3
"""Engines with a Python interface as a decoder, by the protocol of peer.rs.

    peers.py KIND PRECISION MODEL_DIR THREADS        KIND: mistral.rs, openvino, transformers, torchao

torchao's weights and activations are not compiled here: the numbers are the same, and windows of text would be compiled for an hour.
"""

import os
import sys
from pathlib import Path

import numpy as np

sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]


class Adapted:
    """One of ../peers.py, which keeps what it has read."""

    def __init__(self, engine, vocab):
        self.engine, self.vocab = engine, vocab

    def logits(self, ids, start):
        if start == 0:
            self.engine.start()
        return self.engine.logits(self.engine.embed(np.array([ids[start:]])))


def load(kind, precision, model, threads):
    if kind == "mistral.rs":
        from mistral import MistralRs

        return MistralRs(model, precision, threads)
    import peers

    if kind == "openvino":
        engine = peers.OpenVino(model, precision, threads, vision=False)
        return Adapted(engine, engine.decoder.model_outputs[0].partial_shape[-1].get_length())
    engine = peers.Transformers(model, precision, threads, compiled=False)
    return Adapted(engine, engine.model.config.text_config.vocab_size)


def main():
    kind, precision, model, threads = sys.argv[1:]
    # What libraries print must not come between the numbers.
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    os.environ["OMP_WAIT_POLICY"] = "passive"  # nothing is timed here, and threads that wait busily slow down whoever they wait for
    engine = load(kind, precision, Path(model), int(threads))
    out.write(np.uint32(engine.vocab).tobytes())
    out.flush()
    ids, known = [], 0  # how many the engine has read
    for line in sys.stdin:
        word, *numbers = line.split()
        if word == "truncate":
            kept = int(numbers[0])
            if kept < len(ids):
                ids, known = ids[:kept], 0
            continue
        ids += map(int, numbers)
        out.write(engine.logits(ids, known).astype(np.float32).tobytes())
        out.flush()
        known = len(ids)


if __name__ == "__main__":
    main()
