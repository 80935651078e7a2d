#!/usr/bin/env python3
"""Our engines and their peers on the same random weights of SmolVLM's geometry: medians of one interleaved run, and ratios.

    engines.py                        everything (half an hour and more), or `make bench`, which installs what it needs
    engines.py --quick                two rounds without the pictures of many tiles
    engines.py --rows int8,llama --columns 128 --model-size medium --threads 1

Each engine is a process of its own; every round measures each of them in turn. Peers: transformers on torch, onnxruntime from Python,
OpenVINO, mistral.rs, llama.cpp, and stock Candle, which is what our library runs in f32. Peers get exactly as many prompt tokens as we have, and
pixels that are ready; ours have the picture to prepare. Writes JSON and plots beside it, and states what it could not run. Each row
has beside its speed what it keeps of f32 on real weights, as `make quality` found it.
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from common import BUILD, LLAMACPP_PROGRAM, LLAMACPP_VERSION, MODELS, make_gguf, make_last_token_decoder, make_llamacpp, make_model, make_openvino
from processes import CannotRun, Process, forget_files, python_runner
from report import CHECKPOINTS, plot, plot_quality, print_report, quality_name, read_quality

STEPS, TEXT_TOKENS, NEW_TOKENS, CONTEXT = 64, 20, 20, 2048
TILES = {"one tile": 1, "17 tiles": 17}
PROMPTS = {"128": 128, "1100": 1100}
ANSWERS = {"answer": 1, "photo": 13}  # tiles; a photo of 640x480 pixels is cut into 13
COLUMNS = [*TILES, *PROMPTS, *ANSWERS, "load"]
MANY_TILES = ("17 tiles", "photo")
TOO_SLOW = 3  # times the best tile: such a row is spared pictures of many tiles


@dataclass
class Row:
    name: str
    ours: bool
    bits: int  # of a weight
    command: list
    files: list  # that it loads
    packs: bool = False  # and may keep packed weights
    reads: bool = False  # text only: its interface has no vision encoder alone
    compiles: bool = False  # for minutes, in its first answer


def rows(model, threads):
    def onnx(suffix, *graphs):
        return [model / "onnx" / f"{graph}{suffix}.onnx" for graph in ("vision_encoder", "embed_tokens", *graphs)]

    def python(kind, precision):
        return python_runner(kind, precision, model, threads)

    weights, suffix = [model / "model.safetensors"], {"f32": "", "int8": "_int8", "q4": "_q4"}
    found = [Row(f"candle {p}", True, bits, python("candle", p), weights, True) for p, bits in (("int4", 4), ("int8", 8), ("bf16", 16))]
    found.append(Row("onnx int8", True, 8, python("onnx", "int8"), onnx("_int8", "decoder_model_merged")))
    found.append(Row("candle f32 (stock)", False, 32, python("candle", "f32"), weights))
    found += [
        Row(f"onnxruntime {p}", False, bits, python("onnxruntime", p), onnx(suffix[p], "decoder_model_last"))
        for p, bits in (("f32", 32), ("int8", 8), ("q4", 4))
    ]
    found.append(Row("transformers bf16", False, 16, python("transformers", "bf16"), weights))
    found.append(Row("torchao int8", False, 8, python("torchao", "int8"), weights, compiles=True))
    found.append(Row("openvino bf16", False, 16, python("openvino", "bf16"), [*onnx(""), model / "openvino" / "decoder.bin"]))
    int8 = [model / "openvino" / f"{graph}-int8.bin" for graph in ("decoder", "vision")]
    found.append(Row("openvino int8", False, 8, python("openvino", "int8"), [*onnx("")[1:], *int8]))
    for kind, bits in (("q8_0", 8), ("q4k", 4)):
        found.append(Row(f"mistral.rs {kind}", False, bits, python("mistral.rs", kind), weights, reads=True))
    for kind, bits, vision in (("q8_0", 8, "f16"), ("q4_0", 4, "q8_0"), ("q4_k_m", 4, "q8_0")):
        files = [model / "gguf" / f"model-{kind}.gguf", model / "gguf" / f"mmproj-{vision}.gguf"]
        for flash in ("on", "off"):
            command = [LLAMACPP_PROGRAM, "serve", *files, threads, CONTEXT, flash]
            found.append(Row(f"llama.cpp {kind}" + ", no flash" * (flash == "off"), False, bits, command, files))
    return found


class Run:
    """Everything that is measured: `values[column][row]` is a list over rounds."""

    def __init__(self, rows):
        self.rows, self.values, self.missing, self.others = rows, {}, [], []

    def miss(self, row, what, why):
        self.missing.append(f"{row.name}, {what}: {why}")
        print(f"  not run: {self.missing[-1]}", flush=True)

    def add(self, column, row, value):
        self.values.setdefault(column, {}).setdefault(row.name, []).append(value)

    def load(self, prompt_tokens, rounds):
        """From a cold and from a warm page cache, and the most memory of a process that answers about one tile."""
        for _ in range(rounds):
            for row in [row for row in self.rows if not row.compiles]:
                try:
                    with self.load_cold_and_warm(row, row.command, row.files, "") as process:
                        if not row.reads:
                            process.measure("answer", 1, prompt_tokens, NEW_TOKENS)
                            self.add("peak MiB", row, process.peak_mib())
                    if row.packs:
                        self.load_packed(row)
                except CannotRun as error:
                    self.miss(row, "load and memory", error)

    def load_cold_and_warm(self, row, command, files, suffix):
        forget_files(path for path in files if path.exists())
        with Process(command) as process:
            self.add(f"load cold{suffix}", row, process.load_seconds)
        process = Process(command)
        self.add(f"load warm{suffix}", row, process.load_seconds)
        return process

    def load_packed(self, row):
        """The same with weights that a load before this one has packed and kept."""
        with tempfile.TemporaryDirectory(dir=BUILD) as packed:
            command = [*row.command, packed]
            with Process(command):
                kept = list(Path(packed).iterdir())
            self.load_cold_and_warm(row, command, [*row.files, *kept], ", packed").end()

    def start(self):
        self.processes = {}
        for row in list(self.rows):
            try:
                self.processes[row.name] = Process(row.command)
                for measure in (("tiles", 1), ("generate", 16, 4))[row.reads :]:  # warms up
                    self.processes[row.name].measure(*measure)
            except CannotRun as error:
                self.rows.remove(row)
                self.miss(row, "all", error)

    def turn(self, columns, prompts):
        """Each engine once, column by column."""
        for column in columns:
            best = self.best_tile()
            for row in list(self.rows):
                if row.reads and column not in PROMPTS:
                    continue
                tile = min(self.values.get("one tile", {}).get(row.name, [0]))
                if column in MANY_TILES and tile > TOO_SLOW * best:
                    if not any(line.startswith(f"{row.name}, {column}") for line in self.missing):
                        self.miss(row, column, f"its one tile takes {tile / best:.1f} times the best one")
                    continue
                try:
                    self.measure(column, row, prompts)
                except CannotRun as error:
                    self.rows.remove(row)
                    self.miss(row, column, error)

    def best_tile(self):
        return min((min(values) for values in self.values.get("one tile", {}).values()), default=0)

    def measure(self, column, row, prompts):
        process = self.processes[row.name]
        if column in TILES:
            others, (seconds,) = process.undisturbed("tiles", TILES[column])
            self.add(column, row, seconds)
        elif column in PROMPTS:
            others, (prefill, *steps) = process.undisturbed("generate", PROMPTS[column], STEPS)
            self.add(f"prefill {column}", row, prefill)
            self.add(f"decode {column}", row, len(steps) / sum(steps))
        elif column in ANSWERS:
            others, (first, total) = process.undisturbed("answer", ANSWERS[column], prompts[column], NEW_TOKENS)
            self.add(f"{column} first", row, first)
            self.add(f"{column} total", row, total)
        self.others.append(others)


def prompt_tokens(model):
    """Tokens of the prompts that answers are measured with: ours, which peers get too."""
    with Process(python_runner("candle", "int8", model, 2)) as process:
        return {column: int(process.measure("prompt", tiles, TEXT_TOKENS)[0]) for column, tiles in ANSWERS.items()}


def machine():
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    fields = {name.strip(): value.strip() for name, value in fields.items()}
    known = [
        flag
        for flag in ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
        if flag in fields.get("flags", "").split()
    ]
    return {"cpu": fields.get("model name", platform.machine()), "flags": known}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, help="default: 7, 2 with --quick; pictures of many tiles have a third of them")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rows", default="", help="parts of the names of those to run, with commas between")
    parser.add_argument("--columns", default="", help=f"of {', '.join(COLUMNS)}")
    parser.add_argument("--model-size", choices=("small", "medium"), default="small", help="SmolVLM-256M's geometry, or 500M's")
    parser.add_argument("--quality", type=Path, help="what quality.py wrote, if it is there: what each row keeps of f32; default: its own")
    parser.add_argument("--with-quality", action="store_true", help="runs quality.py for these rows first (with --quick, if that is given)")
    parser.add_argument("--prepare", action="store_true", help="makes what the rows need, and measures nothing")
    parser.add_argument("--out", type=Path, help="a JSON file; default: build/bench/engines-SIZE-THREADS.json")
    options = parser.parse_args()
    quick = options.quick and options.with_quality
    options.quality = options.quality or BUILD.parent / "quality" / ("quality-quick.json" if quick else "quality.json")
    options.rounds = options.rounds or (2 if options.quick else 7)
    options.columns = [column.strip() for column in options.columns.split(",") if column] or [
        c for c in COLUMNS if not (options.quick and c in (*MANY_TILES, "load"))
    ]
    for column in options.columns:
        if column not in COLUMNS:
            parser.error(f"--columns: '{column}' is none of {', '.join(COLUMNS)}")
    options.out = options.out or BUILD / f"engines-{options.model_size}-{options.threads}.json"
    return options


def prepare(size, wanted):
    """The model, and what the rows need whose names are `wanted`."""
    model = make_model(size, ("fp32", "int8", "q4"))
    for suffix in ("", "_int8", "_q4"):
        make_last_token_decoder(model, suffix)
    for name in wanted:
        if name.startswith("openvino"):
            make_openvino(model, name.split(" ")[1])
    if any("llama.cpp" in name for name in wanted):
        make_gguf(model, make_llamacpp(), {name.split(" ")[1].rstrip(",") for name in wanted if "llama.cpp" in name})
    return model


def main():
    options = arguments()
    parts = options.rows.split(",")
    wanted = [row for row in rows(MODELS[options.model_size], options.threads) if any(part in row.name for part in parts)]
    model = prepare(options.model_size, [row.name for row in wanted])
    if options.with_quality:
        rows_too = dict.fromkeys(quality_name(row.name) for row in wanted)
        command = [sys.executable, Path(__file__).parent / "quality" / "quality.py", "--rows", ",".join(filter(None, rows_too))]
        flags = ["--quick"] * options.quick + ["--prepare"] * options.prepare
        subprocess.run([*command, "--checkpoints", CHECKPOINTS[0], "--out", options.quality, *flags], check=True)
    if options.prepare:
        return
    prompts = prompt_tokens(model)
    run = Run(wanted)
    start = time.time()
    if "load" in options.columns:
        run.load(prompts["answer"], 1 if options.quick else 3)
    run.start()
    few = [c for c in options.columns if c in MANY_TILES]
    often = [c for c in options.columns if c not in MANY_TILES and c != "load"]
    for number in range(options.rounds):
        print(f"round {number + 1} of {options.rounds}, {time.time() - start:.0f} s", flush=True)
        run.turn(often, prompts)
        if number % 3 == 0:
            run.turn(few, prompts)
    for process in run.processes.values():
        process.end()
    packages = ("torch", "transformers", "onnxruntime", "openvino", "nncf", "torchao", "mistralrs")
    found = {
        "machine": machine(), "threads": options.threads, "rounds": options.rounds, "model": model.name, "prompt_tokens": prompts,
        "versions": {**{name: version(name) for name in packages}, "llama.cpp": f"of llama-cpp-python {LLAMACPP_VERSION}"},
        "rows": {row.name: {k: v for k, v in asdict(row).items() if k in ("ours", "bits")} for row in run.rows},
        "values": run.values, "missing": run.missing, "others": run.others, "seconds": time.time() - start, "quality": read_quality(options.quality, run.rows),
    }  # fmt: skip
    options.out.write_text(json.dumps(found, indent=1) + "\n")
    print_report(found)
    plot(found, options.out.with_suffix(".png"))
    plot_quality(found, options.out.with_suffix(".svg"))
    print(f"\n{options.out}, .png and .svg, {found['seconds'] / 60:.0f} minutes")


if __name__ == "__main__":
    main()
