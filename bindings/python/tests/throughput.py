"""Answers a second of four Python threads over those of one, at one thread for each request: `python throughput.py [ROUNDS]`.

On two cores it is 2 at most, and less where the GIL or the engine makes a call wait for another.
"""

import statistics
import sys
import threading
import time
from pathlib import Path

import smolvlm

DEMO = Path(__file__).resolve().parents[3] / "models" / "demo"
QUESTIONS, THREADS = 32, 4


def seconds(model, picture, threads):
    def ask():
        for _ in range(QUESTIONS // threads):
            model.ask(picture, "What objects are in this image?")

    workers = [threading.Thread(target=ask) for _ in range(threads)]
    start = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return time.perf_counter() - start


def main():
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    picture = (DEMO / "test_image.jpg").read_bytes()
    for dtype in ("f32", "int8"):
        model, ratios = smolvlm.Model(DEMO, dtype=dtype, num_threads=1), []
        for number in range(rounds + 1):
            one, many = seconds(model, picture, 1), seconds(model, picture, THREADS)
            if number > 0:  # the first is for warming up
                ratios.append(one / many)
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        print(
            f"{dtype}: {QUESTIONS / one:.1f} answers a second on one thread, {THREADS} threads {statistics.median(ratios):.2f} times that ({spread})"
        )


if __name__ == "__main__":
    main()
