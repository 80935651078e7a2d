#!/usr/bin/env python3
"""Writes a checkpoint's decoder as OpenVINO runs it best: converted from torch, its KV cache a state of the model.

    make_openvino.py MODEL_DIR OUT.xml
    make_openvino.py MODEL_DIR OUT.xml --int8 [VISION.xml]      8-bit weights; vision with 8-bit activations too, as its makers have it

OpenVINO's reader of ONNX does not know the rotary embedding of our exported decoder. The form is the one that `optimum` gives such models:
a batch that `beam` picks from the cache, a state that begins empty, logits of the last token.
"""

import sys
from pathlib import Path

import numpy as np
import openvino
import torch
from openvino import opset13 as op
from openvino._offline_transformations import apply_make_stateful_transformation
from transformers import AutoModelForImageTextToText, DynamicCache

ANY = -1
TILES = 8  # that scales of activations are found on


class Decoder(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.text, self.head, self.config = model.model.text_model, model.lm_head, model.config.text_config

    def forward(self, embeds, mask, positions, beam, *past):
        cache = DynamicCache(config=self.config)
        for layer, keys, values in zip(cache.layers, past[::2], past[1::2]):
            layer.keys, layer.values = keys.index_select(0, beam), values.index_select(0, beam)
            layer.dtype, layer.device, layer.is_initialized = keys.dtype, keys.device, True
        out = self.text(inputs_embeds=embeds, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True)
        present = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
        return (self.head(out.last_hidden_state[:, -1:]), *present)


def begin_empty(model, heads, size):
    """Gives the states a value to begin with: no positions."""
    batch = op.gather(op.shape_of(model.input("embeds"), output_type="i64"), op.constant([0]), op.constant(0))
    shape = op.concat([batch, op.constant(np.array([heads, 0, size], np.int64))], axis=0)
    for node in model.get_ops():
        if node.get_type_name() == "ReadValue":
            node.set_arguments([op.broadcast(op.constant(0.0, dtype=node.get_output_element_type(0)), shape)])
    model.validate_nodes_and_infer_types()


def convert(folder):
    reference = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    decoder = Decoder(reference)
    layers, heads, size = decoder.config.num_hidden_layers, decoder.config.num_key_value_heads, decoder.config.head_dim
    past = [torch.randn(2, heads, 3, size) for _ in range(2 * layers)]
    example = (torch.randn(2, 4, decoder.config.hidden_size), torch.ones(2, 7, dtype=torch.int64), torch.arange(3, 7).repeat(2, 1),
               torch.arange(2, dtype=torch.int32), *past)  # fmt: skip
    with torch.no_grad():
        model = openvino.convert_model(decoder, example_input=example)
    cache = [f"{i}.{part}" for i in range(layers) for part in ("key", "value")]
    shapes = {"embeds": [ANY, ANY, decoder.config.hidden_size], "mask": [ANY, ANY], "positions": [ANY, ANY], "beam": [ANY]}
    shapes |= {f"past.{name}": [ANY, heads, ANY, size] for name in cache}
    for port, name in zip(model.inputs, shapes):
        port.get_tensor().set_names({name})
    for port, name in zip(model.outputs, ["logits", *(f"present.{name}" for name in cache)]):
        port.get_tensor().set_names({name})
    model.reshape({name: openvino.PartialShape(shape) for name, shape in shapes.items()})
    apply_make_stateful_transformation(model, {f"past.{name}": f"present.{name}" for name in cache})
    begin_empty(model, heads, size)
    return model


def vision(folder):
    """The vision encoder of the plain ONNX graph in static int8. Its scales come from pieces of a photograph."""
    import matplotlib
    import nncf
    from PIL import Image

    model = openvino.Core().read_model(folder / "onnx" / "vision_encoder.onnx")
    size = model.inputs[0].partial_shape[-1].get_length()
    picture = Image.open(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg").convert("RGB")
    tiles = []
    for number in range(TILES):
        left, top, side = 20 * number, 10 * number, min(picture.size) - 20 * TILES
        piece = picture.resize((size, size), box=(left, top, left + side, top + side))
        pixels = np.asarray(piece, np.float32).transpose(2, 0, 1)[None, None] / 127.5 - 1
        tiles.append({"pixel_values": pixels, "pixel_attention_mask": np.ones((1, 1, size, size), bool)})
    return nncf.quantize(model, nncf.Dataset(tiles), subset_size=TILES, model_type=nncf.ModelType.TRANSFORMER)


def main():
    folder, out, *rest = sys.argv[1:]
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    model = convert(Path(folder))
    if rest:
        import nncf

        model = nncf.compress_weights(model)
    openvino.save_model(model, out, compress_to_fp16=False)
    for path in rest[1:]:
        openvino.save_model(vision(Path(folder)), path, compress_to_fp16=False)


if __name__ == "__main__":
    main()
