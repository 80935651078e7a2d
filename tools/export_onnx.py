#!/usr/bin/env python3
"""Writes a checkpoint's ONNX graphs into its `onnx` folder, in the hub's layout and names, and compares them with the reference.

    export_onnx.py MODEL_DIR                                     fp32, fp16, int8, q4 and q4f16
    export_onnx.py MODEL_DIR --precisions int8,fp16 --out DIR    some of them, elsewhere
    export_onnx.py MODEL_DIR --link --out DIR                    fp32 without weights: the graphs point into model.safetensors, which
                                                                 must lie beside them (a link will do)

MODEL_DIR: any Idefics3 or SmolVLM checkpoint that transformers loads, a fine-tuned one too.
"""

import argparse
from pathlib import Path

import torch
from checksums import update_sums
from onnx_export.builder import save, stored_tensors
from onnx_export.check import Reference
from onnx_export.graphs import BUILD
from onnx_export.variants import SUFFIXES, build, link
from transformers import AutoModelForImageTextToText

EXTERNAL_ABOVE = 1 << 30  # protobuf ends at 2 GiB


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, metavar="MODEL_DIR")
    parser.add_argument("--precisions", default=",".join(SUFFIXES), help="default: %(default)s")
    parser.add_argument("--out", type=Path, help="default: MODEL_DIR/onnx")
    parser.add_argument("--external-above", type=int, default=EXTERNAL_ABOVE, metavar="BYTES", help="larger graphs keep weights in .onnx_data")
    parser.add_argument("--position-ids", action=argparse.BooleanOptionalAction, default=True, help="an input of the decoder; some of the hub's have none")
    parser.add_argument("--link", action="store_true", help="point into model.safetensors")
    options = parser.parse_args()
    if options.link:
        options.precisions = "fp32"
    options.precisions = options.precisions.split(",")
    for precision in options.precisions:
        if precision not in SUFFIXES:
            parser.error(f"--precisions: '{precision}' is none of {', '.join(SUFFIXES)}")
    if not (options.model / "config.json").is_file():
        parser.error(f"{options.model}: no config.json there")
    options.out = options.out or options.model / "onnx"
    return options


def main():
    options = arguments()
    model = AutoModelForImageTextToText.from_pretrained(options.model, dtype=torch.float32).eval()
    family = model.config.model_type
    if family not in ("idefics3", "smolvlm"):
        raise SystemExit(f"{options.model}: model_type is {family}, idefics3 and smolvlm are known")
    weights = {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}
    options.out.mkdir(parents=True, exist_ok=True)
    written = []
    for precision in options.precisions:
        for graph in BUILD:
            path = options.out / f"{graph}{SUFFIXES[precision]}.onnx"
            extra = {"position_ids": options.position_ids} if graph == "decoder_model_merged" else {}
            if options.link:
                files = save(link(graph, model.config, weights, stored_tensors(options.model), **extra), path)
            else:
                files = save(build(graph, precision, model.config, weights, **extra), path, options.external_above)
            written += files
            print(f"{path}: {sum(file.stat().st_size for file in files) / 1e6:.1f} MB", flush=True)
    if options.out.resolve().is_relative_to(options.model.resolve()):
        update_sums(options.model, written)
    if options.link:
        return
    print("\nlargest difference from the reference (float32), as a share of its root mean square")
    print(f"{'':8}{'image_features':>16}{'inputs_embeds':>16}{'logits':>16}{'same token':>16}")
    reference = Reference(model)
    for precision in options.precisions:
        *differences, same = reference.differences(options.out, precision)
        print(f"{precision:8}" + "".join(f"{d:16.1e}" for d in differences) + f"{same:15.0%}")


if __name__ == "__main__":
    main()
