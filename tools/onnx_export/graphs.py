"""The three graphs: vision encoder with connector, embedding table, decoder with KV cache.

Names, order and shapes of inputs and outputs are those of the hub's files for SmolVLM-256M-Instruct. Inside, ONNX Runtime's fused
operators stand for attention, rotary embedding and norms: the decomposed forms cost it half its decode speed.

Weights may be those of rotation.py, which are known by its matrix (`Builder.turned`).
"""

import numpy as np
from onnx import TensorProto
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from .builder import MICROSOFT, Builder
from .names import ENTRANCE, SPREAD, TEXT, VISION

FLOAT, INT64, INT32, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL


def down(b, value, layer):
    """The layer that reads a gated product, whose channels and rows are the most uneven ones. Where the graph's weights are turned, the
    channels are spread over each other; rows are made equally large, and get their size back after: ONNX Runtime finds one scale for all rows
    of a tensor, and here the row of a prompt's first token is a hundred times as large as the others."""
    if not b.turned:
        return b.linear(value, layer)
    width, block = b.weights[f"{layer}.weight"].shape[1], len(b.weights[SPREAD])
    spread = b.node("MatMul", b.reshape(value, 0, 0, width // block, block), b.weight(SPREAD))
    value = b.reshape(spread, 0, 0, width)
    size = b.node("ReduceMax", b.node("Abs", value), axes=[-1], keepdims=1)
    size = b.node("Max", size, b.floats("least", np.array(1e-30)))  # a row of zeros stays one
    return b.linear(b.node("Div", value, size), layer, size=size)


def vision_encoder(config, weights, element, stored=None):
    """`pixel_attention_mask` must be all true: tiles are always full, and the reference's other cases cannot occur."""
    vision, scale = config.vision_config, config.scale_factor
    width, side, size = vision.hidden_size, vision.image_size // vision.patch_size, vision.image_size
    b = Builder("vision_encoder", weights, element, stored)
    pixels = b.input("pixel_values", FLOAT, ["batch_size", "num_images", 3, size, size])
    b.input("pixel_attention_mask", BOOL, ["batch_size", "num_images", size, size])

    tiles = b.reshape(b.cast_in(pixels, FLOAT), -1, 3, size, size)
    patch = f"{VISION}.embeddings.patch_embedding"
    stride = [vision.patch_size] * 2
    patches = b.node("Conv", tiles, b.weight(f"{patch}.weight"), b.weight(f"{patch}.bias"), strides=stride, kernel_shape=stride)
    x = b.node("Transpose", b.reshape(patches, 0, width, side * side), perm=[0, 2, 1])
    x = b.node("Add", x, b.weight(f"{VISION}.embeddings.position_embedding.weight"))

    def norm(x, name):
        if b.turned:
            return b.node("SimplifiedLayerNormalization", x, b.weight(f"{name}.weight"), axis=-1, epsilon=vision.layer_norm_eps, stash_type=1)
        return b.node("LayerNormalization", x, b.weight(f"{name}.weight"), b.weight(f"{name}.bias"), epsilon=vision.layer_norm_eps)

    for i in range(vision.num_hidden_layers):
        layer = f"{VISION}.encoder.layers.{i}"
        h = norm(x, f"{layer}.layer_norm1")
        q, k, v = (b.linear(h, f"{layer}.self_attn.{part}_proj") for part in "qkv")
        h = b.node("MultiHeadAttention", q, k, v, domain=MICROSOFT, num_heads=vision.num_attention_heads)
        x = b.node("Add", x, b.linear(h, f"{layer}.self_attn.out_proj"))
        h = norm(x, f"{layer}.layer_norm2")
        h = b.node("FastGelu", b.linear(h, f"{layer}.mlp.fc1"), domain=MICROSOFT)  # the tanh form
        x = b.node("Add", x, b.linear(h, f"{layer}.mlp.fc2"))
    x = norm(x, f"{VISION}.post_layernorm")

    # Pixel shuffle: scale x scale patches become one token, row by row.
    short = side // scale
    x = b.node("Transpose", b.reshape(x, -1, short, scale, short, scale * width), perm=[0, 1, 3, 2, 4])
    x = b.linear(b.reshape(x, -1, short * short, scale * scale * width), "model.connector.modality_projection.proj")
    b.output(x, "image_features", FLOAT, ["num_tiles", short * short, config.text_config.hidden_size])
    return b.model()


def embed_tokens(config, weights, element, stored=None):
    b = Builder("embed_tokens", weights, element, stored)
    ids = b.input("input_ids", INT64, ["batch_size", "sequence_length"])
    rows = b.node("Gather", b.weight(f"{TEXT}.embed_tokens.weight"), ids)
    b.output(rows, "inputs_embeds", FLOAT, ["batch_size", "sequence_length", config.text_config.hidden_size])
    return b.model()


def rotary_tables(b, text):
    """Cosines and sines [positions, head_dim / 2] of the rotate-half form; ONNX Runtime computes them once, when it loads the graph."""
    half, rope = text.head_dim // 2, text.rope_parameters
    kind, scale = rope.get("rope_type", "default"), 1.0
    if kind == "default":
        frequencies = rope["rope_theta"] ** (-np.arange(half, dtype=np.float64) / half)
    elif kind in ("linear", "llama3", "yarn"):
        frequencies, scale = ROPE_INIT_FUNCTIONS[kind](text)
        frequencies = frequencies.numpy()
    else:
        raise SystemExit(f"rope_type {kind}: its frequencies depend on a sequence's length, and tables cannot")
    positions = b.constant("positions", np.arange(text.max_position_embeddings, dtype=np.float32)[:, None])
    angles = b.node("Mul", positions, b.constant("frequencies", frequencies.astype(np.float32)))
    tables = [b.node(function, angles) for function in ("Cos", "Sin")]
    if scale != 1.0:
        tables = [b.node("Mul", table, b.constant("rotary_scale", np.array(scale, np.float32))) for table in tables]
    return [b.cast_in(table, FLOAT) for table in tables]


def decoder(config, weights, element, stored=None, position_ids=True):
    """Without `position_ids`, as some of the hub's are: attention counts positions from what the cache holds."""
    text = config.text_config
    heads, kv_heads, head_dim = text.num_attention_heads, text.num_key_value_heads, text.head_dim
    b = Builder("decoder_model_merged", weights, element, stored)
    embeds = b.input("inputs_embeds", FLOAT, ["batch_size", "sequence_length", text.hidden_size])
    mask = b.input("attention_mask", INT64, ["batch_size", "total_sequence_length"])
    positions = b.input("position_ids", INT64, ["batch_size", "sequence_length"]) if position_ids else None
    past = ["batch_size", kv_heads, "past_sequence_length", head_dim]
    present = ["batch_size", kv_heads, "total_sequence_length", head_dim]
    for i in range(text.num_hidden_layers):
        for part in ("key", "value"):
            b.input(f"past_key_values.{i}.{part}", element, past)

    one = b.constant("one", np.array([1], np.int64))
    lengths = b.node("Sub", b.node("ReduceSum", mask, one, keepdims=0), one)
    lengths = b.node("Cast", lengths, to=INT32)
    total = b.node("Gather", b.node("Shape", mask), b.constant("index_one", np.array(1, np.int64)))
    total = b.node("Cast", total, to=INT32)
    tables = rotary_tables(b, text)

    def norm(x, name):
        return b.node("SimplifiedLayerNormalization", x, b.weight(f"{name}.weight"), axis=-1, epsilon=text.rms_norm_eps, stash_type=1)

    def rotate(x, count):
        if not position_ids:
            return x
        return b.node("RotaryEmbedding", x, positions, *tables, domain=MICROSOFT, num_heads=count, rotary_embedding_dim=0)

    x = b.cast_in(embeds, FLOAT)
    if b.turned:
        x = b.node("MatMul", x, b.weight(ENTRANCE))
    for i in range(text.num_hidden_layers):
        layer = f"{TEXT}.layers.{i}"
        h = norm(x, f"{layer}.input_layernorm")
        q, k, v = (b.linear(h, f"{layer}.self_attn.{part}_proj") for part in "qkv")
        cache = [f"past_key_values.{i}.key", f"past_key_values.{i}.value"]
        outputs = [f"attention_{i}", f"present.{i}.key", f"present.{i}.value"]
        inputs = [rotate(q, heads), rotate(k, kv_heads), v, *cache, lengths, total, *([] if position_ids else tables)]
        h, *_ = b.node(
            "GroupQueryAttention", *inputs, outputs=outputs, domain=MICROSOFT, num_heads=heads, kv_num_heads=kv_heads,
            scale=head_dim**-0.5, do_rotary=int(not position_ids),
        )  # fmt: skip
        x = b.node("Add", x, b.linear(h, f"{layer}.self_attn.o_proj"))
        h = norm(x, f"{layer}.post_attention_layernorm")
        gate, up = (b.linear(h, f"{layer}.mlp.{part}_proj") for part in ("gate", "up"))
        h = b.node("Mul", b.node("Mul", gate, b.node("Sigmoid", gate)), up)
        x = b.node("Add", x, down(b, h, f"{layer}.mlp.down_proj"))
    head = f"{TEXT}.embed_tokens.weight" if config.tie_word_embeddings and not b.turned else "lm_head.weight"
    logits = b.linear(norm(x, f"{TEXT}.norm"), "lm_head", head)
    b.output(logits, "logits", FLOAT, ["batch_size", "sequence_length", text.vocab_size])
    for i in range(text.num_hidden_layers):
        for part in ("key", "value"):
            b.declare_output(f"present.{i}.{part}", element, present)
    return b.model()


BUILD = {"vision_encoder": vision_encoder, "embed_tokens": embed_tokens, "decoder_model_merged": decoder}
