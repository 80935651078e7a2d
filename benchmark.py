#!/usr/bin/env python3
"""Compares engines on the same weights, side by side: load, time to first token, tokens per second, peak memory.

    python3 benchmark.py -i test_image.jpg -b python candle onnx -s small medium -t description objects -r 3
    python3 benchmark.py --synthetic -b python:bf16 candle:int8 onnx:int8      weights of the true geometry where no checkpoint is present
    python3 benchmark.py -b candle onnx -s demo                                the bundled model

Backends: candle and onnx are this library's; python is transformers on torch with the same weights. A precision may follow: candle:int8.
Each round starts a fresh process for each backend and size, in turn forwards and backwards; it loads the model, answers once
unmeasured, then each task. The table has medians, the least and the most, and how many times as good as the first backend.
"""

import argparse
import importlib.util
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

from smolvlm_demo import DEMO, DTYPES, ROOT, SIZES, package, picture

sys.path.insert(0, str(ROOT / "tools"))
from side_by_side.plot import draw  # noqa: E402
from side_by_side.report import Results  # noqa: E402

TASKS = {
    "description": "Can you describe this image?",
    "objects": "What objects are in this image?",
    "count": "How many objects are there?",
    "text": "What does the text in this image say?",
}
SYNTHETIC = {"small": "smolvlm-256m", "medium": "smolvlm-500m", "large": "smolvlm-2.2b"}
BACKENDS = ("python", "candle", "onnx")
ONE_TILE = 512


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-i", "--image", nargs="+", default=["test_image.jpg"], metavar="FILE", help="default: the bundled picture")
    parser.add_argument("-b", "--backend", nargs="+", default=["candle", "onnx"], metavar="NAME[:PRECISION]", help="python, candle, onnx")
    parser.add_argument("-s", "--size", nargs="+", default=["small"], choices=("demo", *SIZES), help="default: small")
    parser.add_argument("-t", "--task", nargs="+", default=["description"], choices=TASKS, help="default: description")
    parser.add_argument("-r", "--rounds", type=int, default=3, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--models", type=Path, default=ROOT / "models", metavar="DIR", help="folder of the published checkpoints; default: models"
    )
    parser.add_argument("--synthetic", action="store_true", help="make random weights of the true geometry where no checkpoint is present")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), metavar="N", help="default: %(default)s")
    parser.add_argument("--max-new-tokens", type=int, default=32, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--longest-edge",
        type=int,
        metavar="N",
        help="of a picture before it is cut into tiles; 0: the model's own; default: one tile of a published one",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=ROOT / "build" / "benchmark",
        metavar="DIR",
        help="for benchmark.json, .png and .svg; default: build/benchmark",
    )
    options = parser.parse_args()
    missing = [name for name in ("matplotlib", "tqdm") if importlib.util.find_spec(name) is None]
    if missing:
        parser.error(f"{' and '.join(missing)} not installed; python3 -m pip install -r tools/requirements.txt brings all that it needs")
    options.image = [picture(name) for name in options.image]
    for path in options.image:
        if not path.is_file():
            parser.error(f"{path}: no such file")
    for backend in options.backend:
        name, _, dtype = backend.partition(":")
        if name not in BACKENDS or (dtype or "auto") not in DTYPES:
            parser.error(f"--backend: '{backend}' is none of {', '.join(BACKENDS)}, with one of {', '.join(DTYPES)} behind a colon")
    if options.rounds < 1:
        parser.error(f"--rounds: {options.rounds} given, 1 or more needed")
    return options


def checkpoint(size, options):
    """The directory of a size, and whether its weights are random."""
    published = DEMO if size == "demo" else options.models / SIZES[size]
    if (published / "config.json").is_file():
        return published, False
    if not options.synthetic:
        raise SystemExit(f"{published}: no checkpoint there; ./download_models.sh {size} fetches it, --synthetic makes random weights")
    made = ROOT / "build" / "bench" / SYNTHETIC[size]
    if not made.exists():
        print(f"making {made}", file=sys.stderr)
        tool("make_synthetic.py", made, "--size", size)
    return made, True


def graphs(model, synthetic, options):
    """ONNX graphs where the onnx backend needs them: those of random weights are made, a checkpoint's are its own."""
    if not any(backend.startswith("onnx") for backend in options.backend):
        return
    suffixes = {"auto": "", "f32": "", "f16": "_fp16"}
    for dtype in (backend.partition(":")[2] or "auto" for backend in options.backend if backend.startswith("onnx")):
        suffix = suffixes.get(dtype, f"_{dtype}")
        if synthetic and not (model / "onnx" / f"decoder_model_merged{suffix}.onnx").is_file():
            print(f"exporting the graphs of {model}", file=sys.stderr)
            tool("export_onnx.py", model, "--precisions", suffix.strip("_") or "fp32")


def tool(name, *arguments):
    done = subprocess.run([sys.executable, str(ROOT / "tools" / name), *map(str, arguments)], stdout=sys.stderr)
    if done.returncode:
        raise SystemExit(f"tools/{name}: ended with {done.returncode}; tools/requirements.txt lists what it needs")


def run(job, progress):
    """What one runner prints, while it does."""
    command = [sys.executable, str(ROOT / "tools" / "side_by_side" / "runner.py")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdin.write(json.dumps(job))
        process.stdin.close()
        lines = []
        for line in process.stdout:
            lines.append(json.loads(line))
            progress.update("task" in lines[-1])
        complaint = process.stderr.read()
    if process.returncode:
        raise SystemExit(f"{complaint.strip().splitlines()[-1] if complaint.strip() else job['backend']} (ended with {process.returncode})")
    return lines


def longest_edge(size, options):
    return options.longest_edge if options.longest_edge is not None else 0 if size == "demo" else ONE_TILE


def measure(options, models):
    from tqdm import tqdm

    results = Results(options.size, options.backend, options.task)
    turns = [(size, backend) for size in options.size for backend in options.backend]
    with tqdm(total=options.rounds * len(turns) * len(options.task), unit="answer", disable=None) as progress:
        for number in range(options.rounds):
            for size, backend in turns if number % 2 == 0 else reversed(turns):
                progress.set_description(f"round {number + 1}, {size}, {backend}")
                name, _, dtype = backend.partition(":")
                job = {"backend": name, "dtype": dtype or "auto", "model": str(models[size][0]), "threads": options.threads}
                job.update(images=[str(path) for path in options.image], tasks={task: TASKS[task] for task in options.task})
                job.update(max_new_tokens=options.max_new_tokens, longest_edge=longest_edge(size, options))
                results.add(size, backend, run(job, progress))
    return results


def processor():
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def main():
    options = arguments()
    models = {size: checkpoint(size, options) for size in options.size}
    for model, synthetic in models.values():
        graphs(model, synthetic, options)
    results = measure(options, models)

    random = [size for size, (_, synthetic) in models.items() if synthetic]
    weights = (
        f"SYNTHETIC weights in {', '.join(random)}: random numbers of the true geometry; the speed is real, the answers are not"
        if random
        else ""
    )
    tiles = sorted({answer["tiles"] for answer in results.answers.values()})
    machine = f"{processor()}, {os.cpu_count()} cores, {options.threads} threads"
    how = f"{options.rounds} rounds, bars and figures are medians, whiskers the least and the most; {'/'.join(map(str, tiles))} tile{'s' if tiles != [1] else ''}, up to {options.max_new_tokens} tokens"
    print(f"{machine}\n{how}\n{weights}\n\n{results.table()}\n")
    for size in options.size:
        for task in options.task:
            if not results.same_answers(size, task):
                print(
                    f"{size}, {task}: the answers differ: "
                    + "; ".join(f"{b}: {results.answers[size, b, task]['text']!r}" for b in options.backend)
                )

    print(*results.disturbed(), sep="\n")
    options.out.mkdir(parents=True, exist_ok=True)
    paths = [options.out / f"benchmark.{kind}" for kind in ("json", "png", "svg")]
    about = {
        "machine": machine,
        "library": package().build_info(),
        "python": platform.python_version(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    settings = {
        "rounds": options.rounds,
        "max_new_tokens": options.max_new_tokens,
        "longest_edge": {size: longest_edge(size, options) for size in options.size},
        "synthetic": random,
    }
    paths[0].write_text(json.dumps({**about, **settings, "results": results.json()}, indent=1) + "\n")
    title = f"SmolVLM side by side{' (synthetic weights)' if random else ''}"
    draw(results, title, "\n".join(line for line in (machine, how, weights) if line), paths[1:])
    print(*paths, sep="\n")


if __name__ == "__main__":
    main()
