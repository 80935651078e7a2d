"""Bytes of weights that a decode step of others reads, without the table of embeddings, of which it reads a row."""

from pathlib import Path

TABLE = "token_embd.weight"


def of_gguf(path):
    """What stands in the file: its recipes have other bits for some tensors, and for widths that their blocks do not fit."""
    from gguf import GGUFReader

    sizes = {tensor.name: int(tensor.n_bytes) for tensor in GGUFReader(path).tensors}
    return sum(sizes.values()) - (sizes[TABLE] if "output.weight" in sizes else 0)  # else it is the head too


def of_checkpoint(folder, matrix_bytes, row_bytes=0):
    """By rule: so many bytes a number of a matrix, and a row of one."""
    from safetensors import safe_open

    total = 0
    with safe_open(folder / "model.safetensors", "np") as file:
        for name in file.keys():
            shape = file.get_slice(name).get_shape()
            if len(shape) == 2 and (name.startswith("model.text_model.layers.") or name == "lm_head.weight"):
                total += shape[0] * (shape[1] * matrix_bytes + row_bytes)
    return total


def of(folder: Path, row):
    """Of a row of quality.py's; None where nobody knows, since the engine quantises in its own memory."""
    engine, precision = row.split(" ")
    if engine == "llama.cpp":
        return of_gguf(folder / "gguf" / f"model-{precision}.gguf")
    if engine == "onnx":
        return (folder / "onnx" / f"decoder_model_merged_{precision}.onnx").stat().st_size
    if row == "openvino int8":
        return (folder / "openvino" / "decoder-int8.bin").stat().st_size
    if precision == "bf16":
        return of_checkpoint(folder, 2)
    return of_checkpoint(folder, 1, 4) if engine == "torchao" else None
