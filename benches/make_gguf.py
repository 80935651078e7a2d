#!/usr/bin/env python3
"""Writes a checkpoint as llama.cpp's files, with its own converter: model-f16.gguf, mmproj-f16.gguf and mmproj-q8_0.gguf.

make_gguf.py LLAMACPP_SOURCE MODEL_DIR OUT_DIR
"""

import json
import sys
import tempfile
from pathlib import Path


def main():
    source, model, out = map(Path, sys.argv[1:])
    sys.path[:0] = [str(source), str(source / "gguf-py")]
    import convert_hf_to_gguf
    from conversion.base import TextModel

    # It knows tokenizers by their digest; a hand-made one has none. This is the name of the published model's.
    TextModel.get_vocab_base_pre = lambda *_: "smollm"
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for file in model.resolve().iterdir():
            (copy / file.name).symlink_to(file)
        config = json.loads((model / "config.json").read_text())
        config["text_config"]["architectures"] = ["VLlama3ForCausalLM"]
        (copy / "config.json").unlink()
        (copy / "config.json").write_text(json.dumps(config))
        for name, options in {"model-f16": [], "mmproj-f16": ["--mmproj"], "mmproj-q8_0": ["--mmproj"]}.items():
            kind = name.rpartition("-")[2]
            sys.argv = ["convert", str(copy), "--outfile", str(out / f"{name}.gguf"), "--outtype", kind, *options]
            convert_hf_to_gguf.main()


if __name__ == "__main__":
    main()
