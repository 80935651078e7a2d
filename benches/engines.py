#!/usr/bin/env python3
"""Our engines and their peers on the same random weights of SmolVLM-256M's geometry, turn by turn: medians, and ratios to the best peer.

    engines.py [--threads N] [--rounds N]      or `make bench`, which installs what it needs

Columns: milliseconds for one tile through vision encoder and connector, for a prompt of about 128 and 1100 tokens, and for a decode step
after each. Peers: onnxruntime driven from Python with IO binding, transformers on torch. Not here yet: OpenVINO, llama.cpp.
"""

import argparse
import statistics

from common import LIBRARY, MODEL, ask, make_model, picture
from library import Library
from peers import OnnxRuntime, Transformers

STEPS, WORDS = 24, {"short": 25, "long": 510}
COLUMNS = ["tile", "prefill short", "step short", "prefill long", "step long"]


class Ours:
    def __init__(self, backend, dtype, threads, image):
        self.library, self.image = Library(LIBRARY, MODEL, backend, dtype, threads), image

    def measure(self):
        row = []
        for words in WORDS.values():
            m = ask(self.library, self.image, words, STEPS)
            row += [*([m.vision_ms] if not row else []), m.prefill_ms, m.decode_ms / (STEPS - 1)]
            self.prompts = [*getattr(self, "prompts", []), m.prompt_tokens][-2:]
        return row


class Peer:
    def __init__(self, peer, prompts):
        self.peer, self.prompts = peer, prompts

    def measure(self):
        row = [self.peer.tile() * 1e3]
        for tokens in self.prompts:
            prefill, steps = self.peer.generate(tokens, STEPS)
            row += [prefill * 1e3, statistics.fmean(steps) * 1e3]
        return row


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    make_model()
    image, threads = picture(), options.threads
    ours = {f"candle {dtype}": Ours("candle", dtype, threads, image) for dtype in ("f32", "bf16", "int8")}
    ours["onnx int8"] = Ours("onnx", "int8", threads, image)
    ours["candle int8"].measure()
    prompts = ours["candle int8"].prompts
    peers = {"onnxruntime f32": OnnxRuntime(MODEL, "f32", threads), "onnxruntime int8": OnnxRuntime(MODEL, "int8", threads)}
    peers["transformers bf16"] = Transformers(MODEL, "bf16", threads)
    runners = {**ours, **{name: Peer(peer, prompts) for name, peer in peers.items()}}
    rows = {name: [] for name in runners}
    for number in range(options.rounds + 1):
        for name, runner in runners.items():
            row = runner.measure()
            if number > 0:  # the first is for warming up
                rows[name].append(row)
    medians = {name: [statistics.median(column) for column in zip(*measured)] for name, measured in rows.items()}
    best = [min(medians[name][i] for name in peers) for i in range(len(COLUMNS))]
    print(f"{threads} threads, {options.rounds} rounds, prompts of {prompts[0]} and {prompts[1]} tokens; ms, and the ratio to the best peer\n")
    print(f"{'':20}" + "".join(f"{column:>20}" for column in COLUMNS))
    for name, row in medians.items():
        print(f"{name:20}" + "".join(f"{value:12.1f} {value / b:6.2f}x" for value, b in zip(row, best)))


if __name__ == "__main__":
    main()
