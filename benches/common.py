"""What the benchmarks share: a synthetic checkpoint of the true geometry, made once, and a picture of one tile."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

MODEL = ROOT / "build" / "bench" / "smolvlm-256m"
LIBRARY = ROOT / "target" / "release" / "libsmolvlm.so"
TILE = 512


def make_model():
    """Random weights of SmolVLM-256M's geometry, and their graphs in f32 and int8."""
    if not MODEL.exists():
        print(f"making {MODEL}", flush=True)
        subprocess.run([sys.executable, ROOT / "tools" / "make_synthetic.py", MODEL], check=True)
    if not (MODEL / "onnx" / "decoder_model_merged_int8.onnx").exists():
        subprocess.run([sys.executable, ROOT / "tools" / "export_onnx.py", MODEL, "--precisions", "fp32,int8"], check=True)


def picture():
    """The bytes of a PNG file that becomes one tile."""
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (TILE, TILE, 3), np.uint8)).save(out, "PNG")
    return out.getvalue()


def ask(library, image, words, steps):
    """Metrics of an answer of `steps` tokens to a prompt of about so many words, about one tile."""
    _, metrics = library.ask(image, "this " * words, longest_edge=TILE, max_new_tokens=steps)
    if metrics.generated_tokens != steps or metrics.tiles != 1:
        raise SystemExit(f"{metrics.generated_tokens} tokens and {metrics.tiles} tiles, {steps} and 1 wanted")
    return metrics
