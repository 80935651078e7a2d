#!/usr/bin/env python3
"""Writes a checkpoint of the published SmolVLM-256M geometry with random weights: it answers nonsense, as fast as the real one.

    make_synthetic.py DIR
"""

import argparse
import shutil
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


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir", type=Path)
    folder = parser.parse_args().dir
    new = folder.with_name(folder.name + ".new")
    shutil.rmtree(new, ignore_errors=True)
    new.parent.mkdir(parents=True, exist_ok=True)
    build(SMALL, new)
    new.rename(folder)


if __name__ == "__main__":
    main()
