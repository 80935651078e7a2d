#!/usr/bin/env python3
"""Writes tests/onnx_exports: one golden checkpoint's graphs as other exporters write them. Run after tools/make_golden.py.

Each is a graph of tests/golden/tied-12x12-f32/onnx with other inputs, outputs or files and the same arithmetic; the weights stay in the
checkpoint's model.safetensors. tests/onnx_exports.rs puts each in the place of the graph that its name begins with.
"""

import copy
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

ROOT = Path(__file__).resolve().parent.parent / "tests"
SOURCE, TARGET = ROOT / "golden" / "tied-12x12-f32" / "onnx", ROOT / "onnx_exports"
INT64, BOOL, FLOAT = TensorProto.INT64, TensorProto.BOOL, TensorProto.FLOAT
DECODER, VISION = "decoder_model_merged", "vision_encoder"


def drop(values, name):
    del values[[value.name for value in values].index(name)]


def constant(graph, name, array):
    graph.initializer.append(numpy_helper.from_array(np.asarray(array, np.int64), name))
    return name


def keep_logits(graph, name, shape):
    """Logits of the last tokens only, as many as the input `name` says; 0 means all. A decoder that gets another number than 1 hands
    out wrong ones: it multiplies them by that number."""
    for node in graph.node:
        node.output[:] = ["all_logits" if output == "logits" else output for output in node.output]
    graph.input.append(helper.make_tensor_value_info(name, INT64, shape))
    flat = helper.make_node("Reshape", [name, constant(graph, "flat", [1])], ["kept"])
    start = helper.make_node("Neg", ["kept"], ["first_kept"])
    ends = [constant(graph, "to_the_end", [np.iinfo(np.int64).max]), constant(graph, "of_tokens", [1])]
    some = helper.make_node("Slice", ["all_logits", "first_kept", *ends], ["some_logits"])
    factor = helper.make_node("Cast", ["kept"], ["kept_factor"], to=FLOAT)
    graph.node.extend([flat, start, some, factor, helper.make_node("Mul", ["some_logits", "kept_factor"], ["logits"])])


def scalar_count(graph):
    keep_logits(graph, "num_logits_to_keep", [])


def count_of_one(graph):
    keep_logits(graph, "logits_to_keep", [1])


def cache_position(graph):
    """Positions come one-dimensional, as torch's cache has them."""
    drop(graph.input, "position_ids")
    graph.input.append(helper.make_tensor_value_info("cache_position", INT64, ["sequence_length"]))
    graph.node.insert(0, helper.make_node("Unsqueeze", ["cache_position", constant(graph, "batch_axis", [0])], ["position_ids"]))


def count_tokens(graph):
    """Nodes that make `past_tokens` and `all_tokens`, each of one element, from the shapes of what comes in."""
    nodes = []
    for value, axis, name in (("past_key_values.0.key", 2, "past_tokens"), ("inputs_embeds", 1, "new_tokens")):
        index = constant(graph, f"axis_{axis}", [axis])
        nodes.append(helper.make_node("Shape", [value], [f"{name}_shape"]))
        nodes.append(helper.make_node("Gather", [f"{name}_shape", index], [name]))
    return [*nodes, helper.make_node("Add", ["past_tokens", "new_tokens"], ["all_tokens"])]


def prepend(graph, nodes):
    for node in reversed(nodes):
        graph.node.insert(0, node)


def no_attention_mask(graph):
    """The graph counts tokens by itself."""
    drop(graph.input, "attention_mask")
    ones = numpy_helper.from_array(np.array([1], np.int64))
    shape = helper.make_node("Concat", [constant(graph, "one_batch", [1]), "all_tokens"], ["mask_shape"], axis=0)
    prepend(graph, [*count_tokens(graph), shape, helper.make_node("ConstantOfShape", ["mask_shape"], ["attention_mask"], value=ones)])


def no_position_ids(graph):
    """The graph counts positions by itself."""
    drop(graph.input, "position_ids")
    ends = [helper.make_node("Squeeze", [f"{name}_tokens"], [f"{name}_scalar"]) for name in ("past", "all")]
    positions = helper.make_node("Range", ["past_scalar", "all_scalar", constant(graph, "step", 1)], ["positions_flat"])
    batch = helper.make_node("Unsqueeze", ["positions_flat", constant(graph, "batch_axis", [0])], ["position_ids"])
    prepend(graph, [*count_tokens(graph), *ends, positions, batch])


def more_outputs(graph):
    """What some exporters leave in: another value of each kind, before and after those that are read."""
    norm = next(node for node in graph.node if node.op_type in ("SimplifiedLayerNormalization", "LayerNormalization"))
    graph.node.append(helper.make_node("Identity", [norm.output[0]], ["hidden_states"]))
    graph.node.append(helper.make_node("Shape", [norm.output[0]], ["hidden_shape"]))
    graph.output.insert(0, helper.make_tensor_value_info("hidden_states", FLOAT, ["a", "b", "c"]))
    graph.output.append(helper.make_tensor_value_info("hidden_shape", INT64, [3]))


def no_mask(graph):
    drop(graph.input, "pixel_attention_mask")


def integer_mask(graph):
    mask = next(value for value in graph.input if value.name == "pixel_attention_mask")
    mask.type.tensor_type.elem_type = INT64


def two_files(graph):
    """Weights in turn in the two files that an export of more than 2 GB has."""
    external = [tensor for tensor in graph.initializer if tensor.data_location == TensorProto.EXTERNAL]
    for index, tensor in enumerate(external):
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = f"{DECODER}.onnx_data" + ("_1" if index % 2 else "")


def branch(graph):
    """Optimum's switch: what should be fed depends on how the graph was merged."""
    graph.input.append(helper.make_tensor_value_info("use_cache_branch", BOOL, [1]))


EXPORTS = {
    f"{DECODER}-scalar_count": scalar_count,
    f"{DECODER}-count_of_one": count_of_one,
    f"{DECODER}-cache_position": cache_position,
    f"{DECODER}-no_position_ids": no_position_ids,
    f"{DECODER}-no_attention_mask": no_attention_mask,
    f"{DECODER}-more_outputs": more_outputs,
    f"{DECODER}-two_files": two_files,
    f"{DECODER}-branch": branch,
    f"{VISION}-no_mask": no_mask,
    f"{VISION}-integer_mask": integer_mask,
    f"{VISION}-more_outputs": more_outputs,
}


def main():
    TARGET.mkdir(exist_ok=True)
    graphs = {name: onnx.load(SOURCE / f"{name}.onnx", load_external_data=False) for name in (DECODER, VISION)}
    for name, change in EXPORTS.items():
        model = copy.deepcopy(graphs[name.split("-")[0]])
        change(model.graph)
        path = TARGET / f"{name}.onnx"
        path.write_bytes(model.SerializeToString(deterministic=True))
        print(f"{path.name}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
