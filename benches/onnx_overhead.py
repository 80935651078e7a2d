#!/usr/bin/env python3
"""What our engine adds to ONNX Runtime: time per tile and per decode step, divided by the time of the same graphs driven from Python.

    onnx_overhead.py [--threads N] [--rounds N]      or `make bench-onnx`, which installs what it needs

Both sides run the same version of ONNX Runtime with the same number of threads, turn by turn.
"""

import argparse
import statistics

import onnxruntime
from common import LIBRARY, MODEL, ask, make_model, picture
from library import Library
from peers import OnnxRuntime

STEPS, WORDS = 48, 40


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    make_model()
    image = picture()
    print(f"onnxruntime {onnxruntime.__version__}, {options.threads} threads, {options.rounds} rounds, medians\n")
    print(f"{'':24}{'ours ms':>12}{'Python ms':>12}{'ratio':>10}{'of pairs':>20}")
    for dtype in ("f32", "int8"):
        ours, python = Library(LIBRARY, MODEL, "onnx", dtype, options.threads), OnnxRuntime(MODEL, dtype, options.threads)
        tiles, steps = [], []
        for number in range(options.rounds + 1):
            m = ask(ours, image, WORDS, STEPS)
            tile, (_, seconds) = python.tile(), python.generate(m.prompt_tokens, STEPS)
            if number > 0:  # the first is for warming up
                tiles.append((m.vision_ms, tile * 1e3))
                # The first token comes from the prefill.
                steps.append((m.decode_ms / (STEPS - 1), statistics.fmean(seconds) * 1e3))
        for name, pairs in (("tile", tiles), ("decode step", steps)):
            mine, theirs = (statistics.median(side) for side in zip(*pairs))
            ratios = sorted(a / b for a, b in pairs)
            spread = f"{ratios[0]:.3f} to {ratios[-1]:.3f}"
            print(f"{dtype + ' ' + name:24}{mine:12.2f}{theirs:12.2f}{statistics.median(ratios):10.3f}{spread:>20}", flush=True)


if __name__ == "__main__":
    main()
