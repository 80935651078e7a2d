#!/usr/bin/env python3
"""Writes a checkpoint of a published SmolVLM geometry with random weights: it answers nonsense, as fast as the real one.

    make_synthetic.py DIR [--size small|medium|large]
"""

import argparse
import shutil
from dataclasses import replace
from pathlib import Path

import torch
from golden.checkpoints import Checkpoint, build

# The geometry of HuggingFaceTB/SmolVLM-256M-Instruct; what is left out has the default of transformers.
SMALL = Checkpoint(
    name="smolvlm-256m",
    about="the geometry of SmolVLM-256M-Instruct",
    seed=1,
    model_type="idefics3",
    dtype=torch.bfloat16,
    vision={"hidden_size": 768, "image_size": 512, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12, "patch_size": 16},
    text={
        "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
        "head_dim": 64, "max_position_embeddings": 8192, "rope_theta": 100000.0, "vocab_size": 49280,
    },
    top={"scale_factor": 4, "tie_word_embeddings": False},
    tile_size=512,
    longest_edge=2048,
    image_seq_len=64,
    tokens=480,
    cases=[],
)  # fmt: skip

# HuggingFaceTB/SmolVLM-500M-Instruct: the same eyes, a wider decoder, stored in f32.
MEDIUM = replace(
    SMALL,
    name="smolvlm-500m",
    about="the geometry of SmolVLM-500M-Instruct",
    dtype=torch.float32,
    text={
        **SMALL.text,
        "hidden_size": 960, "intermediate_size": 2560, "num_hidden_layers": 32, "num_attention_heads": 15, "num_key_value_heads": 5,
    },
)  # fmt: skip

# HuggingFaceTB/SmolVLM-Instruct, the first 2.2B.
LARGE = replace(
    SMALL,
    name="smolvlm-2.2b",
    about="the geometry of SmolVLM-Instruct",
    vision={"hidden_size": 1152, "image_size": 384, "intermediate_size": 4304, "num_attention_heads": 16, "num_hidden_layers": 27, "patch_size": 14},
    text={
        "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24, "num_attention_heads": 32, "num_key_value_heads": 32,
        "head_dim": 64, "max_position_embeddings": 8192, "rope_theta": 273768.0, "vocab_size": 49155,
    },
    top={"scale_factor": 3, "tie_word_embeddings": False},
    tile_size=384,
    longest_edge=1536,
    image_seq_len=81,
    tokens=443,  # as many merges as SMALL's
    v1_tokens=True,
)  # fmt: skip

SIZES = {"small": SMALL, "medium": MEDIUM, "large": LARGE}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir", type=Path)
    parser.add_argument("--size", choices=SIZES, default="small", help="default: %(default)s")
    options = parser.parse_args()
    folder = options.dir
    new = folder.with_name(folder.name + ".new")
    shutil.rmtree(new, ignore_errors=True)
    new.parent.mkdir(parents=True, exist_ok=True)
    build(SIZES[options.size], new)
    new.rename(folder)


if __name__ == "__main__":
    main()
