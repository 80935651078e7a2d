#!/usr/bin/env python3
"""What our engine adds to ONNX Runtime: time per tile and per decode step, divided by the time of the same graphs driven from Python.

    onnx_overhead.py [--threads N] [--rounds N]      or `make bench-onnx`, which installs what it needs

The graphs have the geometry of SmolVLM-256M and random weights; they are made once, in build/bench. Python drives them as well as it
can: IO binding, the KV cache never leaves ONNX Runtime, logits of the last position only. Both sides run the same version of
ONNX Runtime with the same number of threads, turn by turn; medians are compared.
"""

import argparse
import io
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
from library import Library  # noqa: E402

MODEL = ROOT / "build" / "bench" / "smolvlm-256m"
SIZE, STEPS, PROMPT = 512, 48, "Describe " + "this image. " * 20
SUFFIX = {"f32": "", "int8": "_int8"}


class Python:
    """The three graphs in Python's onnxruntime."""

    def __init__(self, dtype, threads):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1

        def session(graph):
            path = MODEL / "onnx" / f"{graph}{SUFFIX[dtype]}.onnx"
            return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

        self.vision, self.embed, self.decoder = session("vision_encoder"), session("embed_tokens"), session("decoder_model_merged")
        self.cache = [i for i in self.decoder.get_inputs() if i.name.startswith("past")]

    def tile(self):
        """Seconds for one tile."""
        pixels = np.random.default_rng(0).uniform(-1, 1, (1, 1, 3, SIZE, SIZE)).astype(np.float32)
        mask = np.ones((1, 1, SIZE, SIZE), bool)
        start = time.perf_counter()
        self.vision.run(None, {"pixel_values": pixels, "pixel_attention_mask": mask})
        return time.perf_counter() - start

    def steps(self, prompt_tokens):
        """Seconds of each decode step after a prompt."""
        past = [onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros((1, i.shape[1], 0, i.shape[3]), np.float32)) for i in self.cache]
        ids, length, seconds = np.arange(prompt_tokens)[None] % 400, 0, []
        for _ in range(STEPS):
            start = time.perf_counter()
            (embeds,) = self.embed.run(None, {"input_ids": ids})
            total = length + ids.shape[1]
            binding = self.decoder.io_binding()
            binding.bind_cpu_input("inputs_embeds", embeds)
            binding.bind_cpu_input("attention_mask", np.ones((1, total), np.int64))
            binding.bind_cpu_input("position_ids", np.arange(length, total)[None])
            for i, value in zip(self.cache, past):
                binding.bind_ortvalue_input(i.name, value)
            for output in self.decoder.get_outputs():
                binding.bind_output(output.name, "cpu")
            self.decoder.run_with_iobinding(binding)
            logits, *past = binding.get_outputs()
            ids, length = np.array([[logits.numpy()[0, -1].argmax()]]), total
            seconds.append(time.perf_counter() - start)
        return seconds[1:]


def make_graphs():
    if not MODEL.exists():
        print(f"making {MODEL}", flush=True)
        subprocess.run([sys.executable, ROOT / "tools" / "make_synthetic.py", MODEL], check=True)
    if not (MODEL / "onnx" / "decoder_model_merged_int8.onnx").exists():
        subprocess.run([sys.executable, ROOT / "tools" / "export_onnx.py", MODEL, "--precisions", "fp32,int8"], check=True)


def picture():
    pixels = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--library", type=Path, default=ROOT / "target" / "release" / "libsmolvlm.so")
    options = parser.parse_args()
    make_graphs()
    image = picture()
    print(f"onnxruntime {onnxruntime.__version__}, {options.threads} threads, {options.rounds} rounds, medians\n")
    print(f"{'':24}{'ours ms':>12}{'Python ms':>12}{'ratio':>10}{'of pairs':>20}")
    for dtype in SUFFIX:
        ours, python = Library(options.library, MODEL, "onnx", dtype, options.threads), Python(dtype, options.threads)
        tiles, steps = [], []
        for number in range(options.rounds + 1):
            _, m = ours.ask(image, PROMPT, longest_edge=SIZE, max_new_tokens=STEPS)
            if m.generated_tokens != STEPS or m.tiles != 1:
                raise SystemExit(f"{m.generated_tokens} tokens and {m.tiles} tiles, {STEPS} and 1 wanted")
            pair = python.tile() * 1e3, statistics.fmean(python.steps(m.prompt_tokens)) * 1e3
            if number > 0:  # the first is for warming up
                tiles.append((m.vision_ms, pair[0]))
                # The first token comes from the prefill.
                steps.append((m.decode_ms / (STEPS - 1), pair[1]))
        for name, pairs in (("tile", tiles), ("decode step", steps)):
            mine, theirs = (statistics.median(side) for side in zip(*pairs))
            ratios = sorted(a / b for a, b in pairs)
            spread = f"{ratios[0]:.3f} to {ratios[-1]:.3f}"
            print(f"{dtype + ' ' + name:24}{mine:12.2f}{theirs:12.2f}{statistics.median(ratios):10.3f}{spread:>20}", flush=True)


if __name__ == "__main__":
    main()
