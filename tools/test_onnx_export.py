#!/usr/bin/env python3
"""Turned weights are the same function: graphs with and without rotations, on golden checkpoints. `make test-tools`."""

import logging
import unittest
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from onnx import TensorProto
from onnx_export.check import TILES, Reference
from onnx_export.graphs import BUILD
from onnx_export.rotation import TURN, hadamard, orthogonal
from onnx_export.variants import int8
from transformers import AutoModelForImageTextToText

GOLDEN = Path(__file__).resolve().parent.parent / "tests" / "golden"
CHECKPOINTS = ("biases-12x12-bf16", "gqa-32x32-f16", "smolvlm2-32x32-f32", "tied-12x12-f32")
EXACT = 1e-4  # of the root mean square
LARGE = 64.0


def session(model):
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def distance(ours, reference):
    return np.abs(ours.ravel() - reference.ravel()).max() / np.sqrt((reference**2).mean())


class Case(unittest.TestCase):
    def setUp(self):
        logging.disable(logging.WARNING)

    def load(self, name):
        model = AutoModelForImageTextToText.from_pretrained(GOLDEN / name, dtype=torch.float32).eval()
        return model.config, Reference(model), {key: tensor.detach().numpy() for key, tensor in model.state_dict().items()}

    def outputs(self, graph, reference, model):
        if graph == "decoder_model_merged":
            return reference.decode(session(model))
        mask = np.ones((1, TILES, *reference.pixels.shape[-2:]), bool)
        return session(model).run(None, {"pixel_values": reference.pixels, "pixel_attention_mask": mask})[0]

    def test_the_same_in_f32(self):
        for name in CHECKPOINTS:
            config, reference, weights = self.load(name)
            for graph, turn in TURN.items():
                exact = reference.logits if graph == "decoder_model_merged" else reference.image_features
                model = BUILD[graph](config, turn(config, weights), TensorProto.FLOAT)
                with self.subTest(name, graph=graph):
                    self.assertLess(distance(self.outputs(graph, reference, model), exact), EXACT)
                    self.assertIn("SimplifiedLayerNormalization", {node.op_type for node in model.graph.node})

    def test_large_gains_cost_nothing(self):
        """A gain that is 64 times as large in some channels, whose readers' columns are as much smaller, is the same function. It costs the
        plain graph what it has, and the turned one nothing."""
        config, reference, weights = self.load("gqa-32x32-f16")
        large = dict(weights)
        for i in range(config.text_config.num_hidden_layers):
            layer = f"model.text_model.layers.{i}"
            readers = {"input_layernorm": [f"self_attn.{part}_proj" for part in "qkv"], "post_attention_layernorm": ["mlp.gate_proj", "mlp.up_proj"]}
            for norm, of in readers.items():
                factors = np.ones_like(weights[f"{layer}.{norm}.weight"])
                factors[::17] = LARGE
                large[f"{layer}.{norm}.weight"] = weights[f"{layer}.{norm}.weight"] * factors
                for reader in of:
                    large[f"{layer}.{reader}.weight"] = weights[f"{layer}.{reader}.weight"] / factors

        def off(weights, turn):
            graph = "decoder_model_merged"
            model = int8(BUILD[graph](config, turn(config, weights), TensorProto.FLOAT))
            return np.sqrt(((self.outputs(graph, reference, model) - reference.logits) ** 2).mean())

        turn = TURN["decoder_model_merged"]
        usual = off(weights, turn)
        self.assertLess(off(large, turn), 1.5 * usual)
        self.assertGreater(off(large, lambda _, weights: weights), 1.5 * usual)  # or the gains above are no trial

    def test_the_matrices_are_orthogonal(self):
        for size in (1, 3, 12, 64, 96, 576):
            matrix = orthogonal(size)
            np.testing.assert_allclose(matrix @ matrix.T, np.eye(size), atol=1e-12)
            self.assertLess(np.abs(matrix).max(), 1.5 / np.sqrt(size))
        np.testing.assert_allclose(hadamard(64) @ hadamard(64), np.eye(64), atol=1e-12)


if __name__ == "__main__":
    unittest.main()
