#!/usr/bin/env python3
"""Two builds of our library, measured in turn, so that a shared machine's drift is in both: medians, and the ratios of pairs.

    libraries.py OLD.so NEW.so                      a tile in int8, 20 pairs
    libraries.py OLD.so NEW.so --measure prefill --dtype bf16 --pairs 8
"""

import argparse
import statistics
from pathlib import Path

from common import make_model
from processes import Process, python_runner

MEASURES = {  # what the process is asked, and which of its answers counts
    "tile": (("tiles", 1), 0),
    "prefill": (("generate", 1100, 1), 0),
    "short": (("generate", 128, 1), 0),
    "decode": (("generate", 128, 64), 1),
    "decode1100": (("generate", 1100, 64), 1),
}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("libraries", type=Path, nargs=2, metavar="LIBRARY.so")
    parser.add_argument("--measure", choices=MEASURES, default="tile")
    parser.add_argument("--dtype", default="int8")
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def main():
    options = arguments()
    question, which = MEASURES[options.measure]
    runner = python_runner("candle", options.dtype, make_model(), options.threads)
    processes = [Process(["env", f"SMOLVLM_LIBRARY={library.resolve(strict=True)}", *runner]) for library in options.libraries]
    for process in processes:
        process.measure(*question)  # warms up
    seconds = [[], []]
    for pair in range(options.pairs):
        for side in (0, 1) if pair % 2 else (1, 0):
            seconds[side].append(processes[side].measure(*question)[which])
    for process in processes:
        process.end()
    ratios = sorted(new / old for old, new in zip(*seconds, strict=True))
    low, high = ratios[len(ratios) // 4], ratios[3 * len(ratios) // 4]
    old, new = (1e3 * statistics.median(side) for side in seconds)
    print(f"{options.measure} {options.dtype}: {old:.1f} -> {new:.1f} ms, ratio {statistics.median(ratios):.3f} ({low:.3f} to {high:.3f})")


if __name__ == "__main__":
    main()
