"""What the benchmarks share: synthetic checkpoints of the true geometries, made once, and what each engine needs beside them."""

import io
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

BUILD = ROOT / "build" / "bench"
MODELS = {"small": BUILD / "smolvlm-256m", "medium": BUILD / "smolvlm-500m"}
MODEL = MODELS["small"]
LIBRARY = Path(os.environ.setdefault("SMOLVLM_LIBRARY", str(ROOT / "target" / "release" / "libsmolvlm.so")))  # as the Python package has it
TILE = 512

LLAMACPP_VERSION = "0.3.36"  # of llama-cpp-python, whose source has llama.cpp's
LLAMACPP = ROOT / "build" / f"llama.cpp-{LLAMACPP_VERSION}"
LLAMACPP_PROGRAM = LLAMACPP / "llamacpp"


def run(*command):
    print("+", *map(str, command), flush=True)
    subprocess.run([str(word) for word in command], check=True)


def stale(graph):
    """Whether a graph is not there, or was written by an exporter that has changed since."""
    return not graph.exists() or any(file.stat().st_mtime > graph.stat().st_mtime for file in (ROOT / "tools" / "onnx_export").glob("*.py"))


def make_model(size="small", precisions=("fp32", "int8")):
    """Random weights of a geometry, and their graphs."""
    folder = MODELS[size]
    if not folder.exists():
        run(sys.executable, ROOT / "tools" / "make_synthetic.py", folder, *([] if size == "small" else ["--size", size]))
    suffixes = {precision: "" if precision == "fp32" else f"_{precision}" for precision in precisions}
    missing = [precision for precision, suffix in suffixes.items() if stale(folder / "onnx" / f"decoder_model_merged{suffix}.onnx")]
    if missing:
        run(sys.executable, ROOT / "tools" / "export_onnx.py", folder, "--precisions", ",".join(missing))
    return folder


def make_last_token_decoder(folder, suffix):
    """The decoder's graph with the logits of the last token alone: the whole prompt's cost more than a short prompt itself."""
    import onnx

    source, target = (folder / "onnx" / f"{name}{suffix}.onnx" for name in ("decoder_model_merged", "decoder_model_last"))
    if target.exists() and target.stat().st_mtime > source.stat().st_mtime:
        return
    model = onnx.load(source)
    graph = model.graph
    norm = [node for node in graph.node if node.op_type == "SimplifiedLayerNormalization"][-1]
    bounds = {"last_start": [-1], "last_end": [2**62], "last_axis": [1]}
    graph.initializer.extend(onnx.helper.make_tensor(name, onnx.TensorProto.INT64, [1], value) for name, value in bounds.items())
    graph.node.insert(list(graph.node).index(norm), onnx.helper.make_node("Slice", [norm.input[0], *bounds], ["last_row"]))
    norm.input[0] = "last_row"
    onnx.save_model(model, target)


def make_openvino(folder, precision="bf16", vision=True):
    """The decoder that a precision needs, and in int8 the vision encoder too."""
    name, out = "decoder-int8.xml" if precision == "int8" else "decoder.xml", folder / "openvino"
    options = [] if precision != "int8" else ["--int8", *([out / "vision-int8.xml"] if vision else [])]
    if not all(path.exists() for path in [out / name, *options[1:]]):
        run(sys.executable, ROOT / "benches" / "make_openvino.py", folder, out / name, *options)


def make_llamacpp():
    """Builds llama.cpp and our program that drives it."""
    run(ROOT / "benches" / "fetch_llamacpp.sh", LLAMACPP_VERSION, LLAMACPP)
    source, built, program = LLAMACPP / "source", LLAMACPP / "cmake" / "bin", LLAMACPP_PROGRAM
    includes = [f"-I{source / part}" for part in ("include", "ggml/include", "tools/mtmd")]
    libraries = [f"-L{built}", f"-Wl,-rpath,{built}", "-lmtmd", "-lllama", "-lggml", "-lggml-base"]
    run("cc", "-O2", "-Wall", "-o", program, ROOT / "benches" / "llamacpp.c", *includes, *libraries)
    return program


def make_gguf(folder, program, kinds=("q8_0", "q4_0")):
    out = folder / "gguf"
    if not (out / "mmproj-q8_0.gguf").exists():
        run(sys.executable, ROOT / "benches" / "make_gguf.py", LLAMACPP / "source", folder, out)
    for kind in kinds:
        if not (out / f"model-{kind}.gguf").exists():
            run(program, "quantize", out / "model-f16.gguf", out / f"model-{kind}.gguf", kind)


def picture():
    """The bytes of a PNG file that becomes one tile."""
    import numpy as np
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (TILE, TILE, 3), np.uint8)).save(out, "PNG")
    return out.getvalue()


def ask(library, image, words, steps):
    """Metrics of an answer of `steps` tokens to a prompt of about so many words, about one tile."""
    _, metrics = library.ask(image, "this " * words, longest_edge=TILE, max_new_tokens=steps)
    if metrics.generated_tokens != steps or metrics.tiles != 1:
        raise SystemExit(f"{metrics.generated_tokens} tokens and {metrics.tiles} tiles, {steps} and 1 wanted")
    return metrics
