#!/usr/bin/env python3
"""Makes tests/golden: small random checkpoints, and what the reference computes for them at every stage.

One command makes everything anew, deterministically and without a network: `python tools/make_golden.py`. The
reference is transformers 5.x with its PIL image processors, eager attention, float32 arithmetic over the stored weights.

SmolVLM's own processor, which a checkpoint saved by transformers has, needs torchvision and num2words as well; without them that
checkpoint is left as it is.

tests/golden/<checkpoint>/ is a hub directory (config.json, weights, tokenizer.json, ...) and next to those files:

golden.json
    about, stored_dtype, template_home (the file that holds the chat template);
    resolved: the configuration after the reference's defaults (scale_factor, tied, vision, text);
    cases: one object per case, with
      name                    prefix of its arrays in golden.safetensors
      image                   PNG file, RGB (kind, width, height: the formula of tools/golden/pictures.py)
      question                the user's text; the message is the image, then this text
      longest_edge, split     the tile budget and the splitting switch
      tile_size, tile_count, rows, cols    rows = cols = 0: one frame
      tiles_sha256            of all tile bytes, u8 [tile_count, tile_size, tile_size, 3], before rescaling
      tile_lines              the pixel rows that the array `tile_lines` holds
      rendered, expanded      the chat template's text, and the same with `<image>` expanded
      prompt_tokens, image_tokens, vision_shape, image_rows_shape, logits_shape    of the full arrays
      greedy_ids, greedy_text 24 tokens, going on past any end-of-utterance; special tokens are not in the text
      greedy_stop             index in greedy_ids of the first token to stop at, or null
      greedy_min_gap          smallest gap between the two best logits at the 24 choices
      logits_std              spread of all logits, to judge a tolerance by

golden.safetensors (per case, names prefixed `<case>.`; the floats are f32, the integers i64)
    tile_lines        u8 [2 * lines, tile_size, 3]: those pixel rows of the first tile, then of the last one
    input_ids         [prompt_tokens]
    greedy_ids        [24]
    vision_tiles      indices of tiles, vision_patches: indices of patches
    vision            [tiles picked, patches picked, hidden]: the vision encoder after post_layernorm
    image_rows_index  indices of rows; image_rows: [rows picked, text hidden], the connector's output, tiles in order
    logits_index      positions p in prompt + greedy_ids; logits: [positions picked, vocab], the row after token p.
                      Every position from prompt_tokens - 1 on is there: row p predicts greedy_ids[p - prompt_tokens + 1].

prompts.json
    a list of {messages, grids, rendered, expanded, ids}: messages in the template's own form, grids the [rows, cols] of
    each image in turn; prompts with several images, turns, a system message, text in many scripts.

tests/golden/preprocess/cases.json
    {"cases": [...], "normalise": {...}, "composite_sha256": ...}; see tools/golden/preprocess.py.

tests/golden/special_tokens.json
    answers with the special tokens in them; see tools/golden/special.py.

tests/golden/templates/<name>.json
    a chat template and its renderings; see tools/golden/templates.py.
"""

import argparse
import os
import shutil
from importlib.util import find_spec
from pathlib import Path

# Set before the tokenizers package is loaded: with one thread the trained merges come out the same every time.
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).resolve().parent.parent / "tests" / "golden", help="output folder"
    )
    parser.add_argument("--only", help="make just this checkpoint, or `preprocess`, `special_tokens` or `templates`")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of the reference")
    arguments = parser.parse_args()

    import torch

    from golden import checkpoints, preprocess, reference, special, specs, templates

    torch.set_num_threads(arguments.threads)
    names = [*(spec.name for spec in specs.SPECS), "preprocess", "special_tokens", "templates"]
    if arguments.only and arguments.only not in names:
        parser.error(f"--only {arguments.only}: not one of {', '.join(names)}")
    for spec in specs.SPECS:
        if arguments.only not in (None, spec.name):
            continue
        missing = [name for name in ("torchvision", "num2words") if spec.needs_torchvision and not find_spec(name)]
        if missing:
            print(f"{spec.name}: left as it is, needs {', '.join(missing)}")
            continue
        folder = arguments.out / spec.name
        shutil.rmtree(folder, ignore_errors=True)
        checkpoints.build(spec, folder)
        for case in reference.write_golden(spec, folder):
            print(
                f"{spec.name} {case['name']}: {case['tile_count']} tiles, {case['prompt_tokens']} tokens, "
                f"logits std {case['logits_std']:.2f}, gap {case['greedy_min_gap']:.4f}, {case['greedy_ids'][:6]}"
            )
    if arguments.only in (None, "preprocess"):
        folder = arguments.out / "preprocess"
        shutil.rmtree(folder, ignore_errors=True)
        print(f"preprocess: {preprocess.write(folder)} cases")
    if arguments.only in (None, "special_tokens"):
        print(f"special_tokens: {special.write(arguments.out / 'special_tokens.json')} tokenizers")
    if arguments.only in (None, "templates"):
        folder = arguments.out / "templates"
        shutil.rmtree(folder, ignore_errors=True)
        print(f"templates: {templates.write(folder)} templates")


if __name__ == "__main__":
    main()
