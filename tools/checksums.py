"""A checkpoint's SHA256SUMS, by which the library finds a damaged file. What is not listed there, it does not read."""

import hashlib

KINDS = (".json", ".jinja", ".safetensors", ".onnx", ".onnx_data")


def write_sums(folder):
    paths = sorted(path for path in folder.rglob("*") if path.suffix in KINDS)
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(folder).as_posix()}\n" for path in paths]
    (folder / "SHA256SUMS").write_text("".join(lines))


def update_sums(folder):
    """Where there is one."""
    if (folder / "SHA256SUMS").exists():
        write_sums(folder)
