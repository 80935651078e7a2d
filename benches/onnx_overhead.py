#!/usr/bin/env python3
"""What our engine adds to ONNX Runtime: time per tile and per decode step, divided by the time of the same graphs driven from Python.

    onnx_overhead.py [--threads N] [--rounds N]      or `make bench-onnx`, which installs what it needs

Both sides run the same version of ONNX Runtime with the same number of threads, turn by turn.
"""

import argparse
import statistics
import time

import onnxruntime
from common import LIBRARY, MODEL, ask, make_model, picture
from library import Library
from peers import OnnxRuntime

STEPS, WORDS, PAUSE_SECONDS = 48, 40, 0.1


def pairs(ours, theirs, rounds):
    """Milliseconds of both, turn by turn: who goes second finds the other's data in cache, so each does so in turn."""
    found = []
    for number in range(rounds + 1):
        pair = {}
        for runner in ((ours, theirs), (theirs, ours))[number % 2]:
            time.sleep(PAUSE_SECONDS)  # the other's threads may still wait busily
            pair[runner] = runner()
        if number > 0:  # the first is for warming up
            found.append((pair[ours], pair[theirs]))
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    make_model()
    image = picture()
    print(f"onnxruntime {onnxruntime.__version__}, {options.threads} threads, {options.rounds} rounds, medians\n")
    print(f"{'':24}{'ours ms':>12}{'Python ms':>12}{'ratio':>10}{'of pairs':>20}")
    for dtype in ("f32", "int8"):
        ours, python = Library(LIBRARY, MODEL, "onnx", dtype, options.threads), OnnxRuntime(MODEL, dtype, options.threads, "decoder_model_merged")
        prompt_tokens = ask(ours, image, WORDS, 1).prompt_tokens
        # Our first token comes from the prefill.
        measures = {
            "tile": (lambda: ask(ours, image, 1, 1).vision_ms, lambda: python.tiles(1)[0] * 1e3),
            "decode step": (
                lambda: ask(ours, image, WORDS, STEPS).decode_ms / (STEPS - 1),
                lambda: statistics.fmean(python.generate(prompt_tokens, STEPS - 1)[1:]) * 1e3,
            ),
        }
        for name, (mine, theirs) in measures.items():
            found = pairs(mine, theirs, options.rounds)
            ratios = sorted(a / b for a, b in found)
            spread = f"{ratios[0]:.3f} to {ratios[-1]:.3f}"
            a, b = (statistics.median(side) for side in zip(*found))
            print(f"{dtype + ' ' + name:24}{a:12.2f}{b:12.2f}{statistics.median(ratios):10.3f}{spread:>20}", flush=True)


if __name__ == "__main__":
    main()
