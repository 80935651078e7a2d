"""A graph under construction: nodes are appended in order, weights become initializers in the graph's precision."""

import json
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from .names import ENTRANCE

OPSET = 17
IR_VERSION = 8  # of ONNX 1.10 to 1.12: every ONNX Runtime that the library accepts reads it
MICROSOFT = "com.microsoft"
SAFETENSORS = {"F32": TensorProto.FLOAT, "F16": TensorProto.FLOAT16, "BF16": TensorProto.BFLOAT16}
NUMPY = {TensorProto.FLOAT: np.float32, TensorProto.FLOAT16: np.float16}


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies in a file."""

    file: str
    element: int
    shape: list
    offset: int
    length: int


def stored_tensors(folder):
    """Every tensor of a checkpoint's safetensors files, by name."""
    tensors = {}
    for path in sorted(folder.glob("model*.safetensors")):
        with open(path, "rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(header_bytes))
        for name, entry in header.items():
            if name != "__metadata__":
                start, end = entry["data_offsets"]
                tensors[name] = Stored(path.name, SAFETENSORS[entry["dtype"]], entry["shape"], 8 + header_bytes + start, end - start)
    return tensors


class Builder:
    def __init__(self, name, weights, element, stored=None):
        """`weights`: a checkpoint's tensors by name, as NumPy arrays in float32. `element`: of the arithmetic. With `stored`, from
        `stored_tensors`, the graph holds no weights: it points into the checkpoint's files."""
        self.name, self.weights, self.element, self.stored = name, weights, element, stored
        self.turned = ENTRANCE in weights
        self.nodes, self.initializers, self.inputs, self.outputs = [], {}, [], []

    def input(self, name, element, shape):
        self.inputs.append(helper.make_tensor_value_info(name, element, shape))
        return name

    def output(self, value, name, element, shape):
        """Hands `value` out as `name`, cast where the precisions differ."""
        if element == self.element:
            self.node("Identity", value, outputs=[name])
        else:
            self.node("Cast", value, outputs=[name], to=element)
        self.outputs.append(helper.make_tensor_value_info(name, element, shape))

    def declare_output(self, name, element, shape):
        """An output that a node has already written under this name."""
        self.outputs.append(helper.make_tensor_value_info(name, element, shape))

    def constant(self, name, array):
        self.initializers.setdefault(name, numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def floats(self, name, array):
        return self.constant(name, array.astype(NUMPY[self.element]))

    def weight(self, name):
        return self.floats(name, self.weights[name]) if self.stored is None else self._linked(name)

    def _linked(self, name):
        stored = self.stored[name]
        tensor = TensorProto(name=name, data_type=stored.element, dims=stored.shape, data_location=TensorProto.EXTERNAL)
        for key, value in (("location", stored.file), ("offset", stored.offset), ("length", stored.length)):
            tensor.external_data.add(key=key, value=str(value))
        self.initializers[name] = tensor
        return self.cast_in(name, stored.element)

    def node(self, operator, *inputs, outputs=None, domain="", **attributes):
        """Appends a node; the name of its output, or of its outputs where `outputs` names several."""
        names = outputs or [f"{operator}_{len(self.nodes)}"]
        name = f"/{operator}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), names, name=name, domain=domain, **attributes))
        return names[0] if len(names) == 1 else names

    def cast_in(self, value, element):
        """`value`, of precision `element`, in the graph's."""
        return value if element == self.element else self.node("Cast", value, to=self.element)

    def reshape(self, value, *shape):
        name = "shape_" + "_".join(map(str, shape))
        return self.node("Reshape", value, self.constant(name, np.array(shape, np.int64)))

    def linear(self, value, layer, weight=None, size=None):
        """`weight`, by default the layer's own, is [out, in], as torch stores it. The product is multiplied by `size`, if that is given."""
        weight = weight or f"{layer}.weight"
        if self.stored is None:
            transposed = self.floats(f"{weight}.T", self.weights[weight].T)
        else:
            transposed = self.node("Transpose", self.weight(weight), perm=[1, 0])
        product = self.node("MatMul", value, transposed)
        product = product if size is None else self.node("Mul", product, size)
        return self.node("Add", product, self.weight(f"{layer}.bias")) if f"{layer}.bias" in self.weights else product

    def model(self):
        graph = helper.make_graph(self.nodes, self.name, self.inputs, self.outputs, list(self.initializers.values()))
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="smolvlm export_onnx.py")


def save(model, path, external_above=0):
    """Writes the graph, and the paths that it wrote. Weights over `external_above` bytes in all go to a file beside it, as on the hub."""
    data = path.with_name(path.name + "_data")
    for old in (path, data):
        old.unlink(missing_ok=True)
    if external_above and sum(len(tensor.raw_data) for tensor in model.graph.initializer) > external_above:
        onnx.save_model(model, path, save_as_external_data=True, all_tensors_to_one_file=True, location=data.name, size_threshold=1024)
        return [path, data]
    onnx.save_model(model, path)
    return [path]
