"""The precisions of the hub's files, and how each is made."""

import tempfile
from pathlib import Path

import onnx
from onnx import TensorProto
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

from .graphs import BUILD
from .names import ENTRANCE, SPREAD
from .rotation import TURN

SUFFIXES = {"fp32": "", "fp16": "_fp16", "int8": "_int8", "q4": "_q4", "q4f16": "_q4f16"}
TURNED = ("int8",)  # 4 bits in blocks lose by it: on real weights the distance from float32 grows by half
BLOCK = 32  # weights that share a scale in 4 bits
INT8_ACTIVATIONS = 4  # MatMulNBits' accuracy level: it may quantise activations to 8 bits, the fast way


def exact(model):
    """The names of the products with rotation.py's own matrices, which stay as they are."""
    return [node.name for node in model.graph.node if {ENTRANCE, SPREAD} & set(node.input)]


def int8(model):
    """Matrices with one scale per output channel, activations quantised as they come; the embedding table too."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "source.onnx", Path(folder) / "target.onnx"
        onnx.save_model(model, source, save_as_external_data=True, location="source.data")
        options = {"MatMulConstBOnly": True, "DefaultTensorType": TensorProto.FLOAT}
        quantize_dynamic(source, target, op_types_to_quantize=["MatMul", "Gather"], per_channel=True, weight_type=QuantType.QInt8,
                         use_external_data_format=True, extra_options=options, nodes_to_exclude=exact(model))  # fmt: skip
        return onnx.load(target)


def q4(model):
    """Blocks of 32 weights with a scale and a zero point each."""
    quantiser = MatMulNBitsQuantizer(model, block_size=BLOCK, is_symmetric=False, accuracy_level=INT8_ACTIVATIONS)
    quantiser.process()
    return quantiser.model.model


def link(graph, config, weights, stored, **options):
    """The graph in float32, without weights: it points into the checkpoint's own files."""
    return BUILD[graph](config, weights, TensorProto.FLOAT, stored, **options)


def build(graph, precision, config, weights, **options):
    """The graph `graph` of BUILD in a precision of SUFFIXES. `options`: of the graph."""
    element = TensorProto.FLOAT16 if precision in ("fp16", "q4f16") else TensorProto.FLOAT
    if precision in TURNED and graph in TURN:
        weights = TURN[graph](config, weights)
    model = BUILD[graph](config, weights, element, **options)
    if precision == "int8":
        return int8(model)
    return q4(model) if precision in ("q4", "q4f16") else model
