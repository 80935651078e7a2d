#!/usr/bin/env python3
"""Cost curves of our engine on random weights of SmolVLM's geometry: time against tiles, prompt length, context and threads.

    curves.py [--dtypes int8,bf16] [--rounds N] [--model-size small|medium]      or `make bench-curves`

Prints the figures and what they say in words, and writes JSON and a plot.
"""

import argparse
import json
import statistics
from pathlib import Path

import numpy as np
from common import BUILD, MODELS, make_model
from processes import Process, python_runner

TILES = [1, 3, 5, 7, 10, 13, 17]
STEPS = 16
LENGTHS = [64, 128, 256, 512, 1024, 2048, 4096, 8191 - STEPS]  # the context ends at 8192, and prefill gives a token too
LONGEST_PROMPT = 4096
THREADS = [1, 2]


def measure(model, dtype, threads, rounds):
    """Medians in seconds: of tiles, of prompts, and of a decode step after each prompt."""
    tiles, prompts, steps = {}, {}, {}
    with Process(python_runner("candle", dtype, model, threads)) as process:
        process.measure("generate", 64, 2)  # warms up
        for number in range(rounds):
            print(f"{dtype}, {threads} threads, round {number + 1} of {rounds}", flush=True)
            for count in TILES:
                tiles.setdefault(count, []).append(process.undisturbed("tiles", count)[1][0])
            for length in LENGTHS:
                prefill, *decode = process.undisturbed("generate", length, STEPS)[1]
                if length <= LONGEST_PROMPT:
                    prompts.setdefault(length, []).append(prefill)
                steps.setdefault(length, []).append(statistics.fmean(decode))
    return {name: {x: statistics.median(y) for x, y in curve.items()} for name, curve in (("tiles", tiles), ("prompt", prompts), ("context", steps))}


def fit(curve, degree):
    """Coefficients from the constant up, of the least relative error, and that error at its worst."""
    x, y = np.array(list(curve), float), np.array(list(curve.values()))
    coefficients = np.polynomial.polynomial.polyfit(x, y, degree, w=1 / y)
    return coefficients, np.abs(np.polynomial.polynomial.polyval(x, coefficients) / y - 1).max()


def in_words(curves):
    (fixed, each), off = fit(curves["tiles"], 1)
    yield f"tiles: {each * 1e3:.0f} ms each and {fixed * 1e3:+.0f} ms once (fits within {off:.0%})"
    (fixed, each, square), off = fit(curves["prompt"], 2)
    words = f"prompt: {fixed * 1e3:+.1f} ms, {each * 1e6:.0f} us a token, and {square * 1e9:.1f} ns a token and token before it and after it (fits within {off:.0%})"
    yield words + (f"; attention costs as much as the rest at {each / square:.0f} tokens" if square > 0 else "")
    (fixed, each), off = fit(curves["context"], 1)
    words = f"a decode step: {fixed * 1e3:.2f} ms, and {each * 1e6:.2f} us for each position of context (fits within {off:.0%})"
    yield words + (f"; it takes twice as long at {fixed / each:.0f} positions" if each > 0 else "")


def scaling(found):
    """How many times faster two threads are than one, at the ends of each curve."""
    one, two = (found[str(threads)] for threads in THREADS)
    for name, unit in (("tiles", "tiles"), ("prompt", "tokens"), ("context", "positions")):
        ends = [(x, one[name][x] / two[name][x]) for x in (min(two[name]), max(two[name]))]
        yield f"{name}: two threads are " + " and ".join(f"{times:.2f} times as fast as one at {x} {unit}" for x, times in ends)


def plot(found, path, title):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 3, figsize=(13, 4.2), layout="constrained")
    labels = {
        "tiles": ("tiles", "vision, s"),
        "prompt": ("tokens of the prompt", "prefill, s"),
        "context": ("positions of context", "decode step, ms"),
    }
    for number, (dtype, by_threads) in enumerate(found.items()):
        for threads, curves in by_threads.items():
            for axes, (name, (x_label, y_label)) in zip(panels, labels.items()):
                scale = 1e3 if name == "context" else 1
                style = {"color": f"C{number}", "linestyle": "-" if int(threads) == max(THREADS) else "--", "marker": "o", "markersize": 3}
                axes.plot(list(curves[name]), [y * scale for y in curves[name].values()], label=f"{dtype}, {threads} threads", **style)
                axes.set_xlabel(x_label)
                axes.set_ylabel(y_label)
                if name == "prompt":
                    axes.set_xscale("log", base=2)
                    axes.set_yscale("log")
                else:
                    axes.set_ylim(0)
                    axes.set_xlim(0)
    panels[0].legend(fontsize=8)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtypes", default="int8,bf16")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model-size", choices=tuple(MODELS), default="small")
    parser.add_argument("--out", type=Path, help="a JSON file; default: build/bench/curves-SIZE.json")
    options = parser.parse_args()
    model = make_model(options.model_size)
    out = options.out or BUILD / f"curves-{options.model_size}.json"
    found = {dtype: {str(t): measure(model, dtype, t, options.rounds) for t in THREADS} for dtype in options.dtypes.split(",")}
    out.write_text(json.dumps(found, indent=1) + "\n")
    for dtype, by_threads in found.items():
        for threads, curves in by_threads.items():
            print(f"\n{dtype}, {threads} threads")
            for name, curve in curves.items():
                print(f"  {name:8}" + "".join(f"{x:>7}: {y * 1e3:<8.4g}" for x, y in curve.items()) + "ms")
            print(*(f"  {line}" for line in in_words(curves)), sep="\n")
        print(f"{dtype}:", *scaling(by_threads), sep="\n  ")
    plot(found, out.with_suffix(".png"), f"{model.name}, random weights")
    print(f"\n{out} and .png")


if __name__ == "__main__":
    main()
