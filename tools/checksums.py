"""A checkpoint's SHA256SUMS, by which the library finds a damaged file. What is not listed there, it does not read."""

import hashlib

KINDS = (".json", ".jinja", ".safetensors")


def _line(folder, path):
    return f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(folder).as_posix()}"


def write_sums(folder):
    """Of all files of a checkpoint that was just written."""
    paths = sorted(path for path in folder.iterdir() if path.suffix in KINDS)
    (folder / "SHA256SUMS").write_text("".join(f"{_line(folder, path)}\n" for path in paths))


def update_sums(folder, written):
    """Where there is one, adds the files that were written; the other lines stay what they are."""
    sums = folder / "SHA256SUMS"
    if not sums.exists():
        return
    lines = {line.split("  ", 1)[1]: line for line in sums.read_text().splitlines()}
    for path in written:
        line = _line(folder, path)
        lines[line.split("  ", 1)[1]] = line
    sums.write_text("".join(f"{lines[name]}\n" for name in sorted(lines)))
