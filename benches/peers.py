"""What others make of the same weights. Each peer has three measures, in seconds:

tiles(n)                 n tiles through vision encoder and connector
generate(p, s)           a prompt of p tokens, and each of s greedy steps after it
answer(n, p, s)          n tiles and p tokens of prompt, 64 a tile among them, then s tokens: the first one, and all
"""

import time
from pathlib import Path

import numpy as np

SUFFIX = {"f32": "", "int8": "_int8", "q4": "_q4"}


class Peer:
    """The measures, of what a peer can do: `encode` tiles, `embed` ids, `start` a conversation, `read` embeddings and say the likeliest token."""

    def tiles(self, count):
        start = time.perf_counter()
        self.encode(count)
        return [time.perf_counter() - start]

    def generate(self, prompt_tokens, steps):
        self.start()
        ids, seconds = np.arange(prompt_tokens)[None] % 400, []
        for _ in range(steps + 1):
            start = time.perf_counter()
            ids = np.array([[self.read(self.embed(ids))]])
            seconds.append(time.perf_counter() - start)
        return seconds

    def answer(self, tiles, prompt_tokens, steps):
        self.start()
        start = time.perf_counter()
        images = self.encode(tiles).reshape(1, -1, self.width)
        text = self.embed(np.arange(prompt_tokens - images.shape[1])[None] % 400)
        token = self.read(self.concatenate([images, text], 1))
        first = time.perf_counter() - start
        for _ in range(steps - 1):
            token = self.read(self.embed(np.array([[token]])))
        return [first, time.perf_counter() - start]

    concatenate = staticmethod(np.concatenate)


def pixels(count, size):
    return np.random.default_rng(0).uniform(-1, 1, (1, count, 3, size, size)).astype(np.float32)


class OnnxRuntime(Peer):
    """The exported graphs in Python's onnxruntime, driven as well as it can be: IO binding, and a KV cache that never leaves it."""

    def __init__(self, model: Path, dtype, threads, decoder="decoder_model_last"):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1

        def session(graph):
            return onnxruntime.InferenceSession(model / "onnx" / f"{graph}{SUFFIX[dtype]}.onnx", options, providers=["CPUExecutionProvider"])

        self.value = onnxruntime.OrtValue.ortvalue_from_numpy
        self.vision, self.table, self.decoder = session("vision_encoder"), session("embed_tokens"), session(decoder)
        self.cache = [i for i in self.decoder.get_inputs() if i.name.startswith("past")]
        self.pixels = pixels(1, self.vision.get_inputs()[0].shape[-1])
        self.mask = np.ones((1, 1, *self.pixels.shape[-2:]), bool)
        self.width = self.decoder.get_inputs()[0].shape[-1]

    def encode(self, count):
        """One by one: a batch is no faster, and needs more memory."""
        feed = {"pixel_values": self.pixels, "pixel_attention_mask": self.mask}
        return np.concatenate([self.vision.run(None, feed)[0] for _ in range(count)])

    def embed(self, ids):
        return self.table.run(None, {"input_ids": ids})[0]

    def start(self):
        self.past = [self.value(np.zeros((1, i.shape[1], 0, i.shape[3]), np.float32)) for i in self.cache]
        self.length = 0

    def read(self, embeds):
        start, self.length = self.length, self.length + embeds.shape[1]
        binding = self.decoder.io_binding()
        binding.bind_cpu_input("inputs_embeds", embeds)
        binding.bind_cpu_input("attention_mask", np.ones((1, self.length), np.int64))
        binding.bind_cpu_input("position_ids", np.arange(start, self.length)[None])
        for i, value in zip(self.cache, self.past):
            binding.bind_ortvalue_input(i.name, value)
        for output in self.decoder.get_outputs():
            binding.bind_output(output.name, "cpu")
        self.decoder.run_with_iobinding(binding)
        logits, *self.past = binding.get_outputs()
        return logits.numpy()[0, -1].argmax()


class Transformers(Peer):
    """The reference on torch, with its scaled-dot-product attention; without the overhead of its `generate()`. In int8, torchao's dynamic
    activations and 8-bit weights, compiled, with a KV cache of fixed length: each new length would be compiled anew."""

    CONTEXT = 2048

    def __init__(self, model: Path, dtype, threads, compiled=True):
        import torch
        from transformers import AutoModelForImageTextToText

        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        self.torch, self.dtype = torch, {"f32": torch.float32, "bf16": torch.bfloat16, "int8": torch.float32}[dtype]
        self.model = AutoModelForImageTextToText.from_pretrained(model, dtype=self.dtype).eval()
        config, self.fixed = self.model.config, False
        self.text, self.vision = self.model.model.text_model, self.model.model.get_image_features
        if dtype == "int8":
            from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

            quantize_(self.model, Int8DynamicActivationInt8WeightConfig())
            self.fixed = compiled
            if compiled:
                self.text, self.vision = torch.compile(self.text, dynamic=True), torch.compile(self.vision)
        self.size, self.width = config.vision_config.image_size, config.text_config.hidden_size
        self.concatenate = torch.cat

    def encode(self, count):
        features = self.vision(self.torch.from_numpy(pixels(count, self.size)).to(self.dtype))
        return self.torch.cat(list(getattr(features, "pooler_output", features)))

    def embed(self, ids):
        return self.model.get_input_embeddings()(self.torch.from_numpy(ids))

    def start(self):
        from transformers import StaticCache

        self.past = StaticCache(config=self.model.config.text_config, max_cache_len=self.CONTEXT) if self.fixed else None

    def last(self, embeds):
        out = self.text(inputs_embeds=embeds, past_key_values=self.past, use_cache=True)
        self.past = out.past_key_values
        return self.model.lm_head(out.last_hidden_state[:, -1:])

    def read(self, embeds):
        return int(self.last(embeds).argmax(-1))

    def logits(self, embeds):
        return self.last(embeds).float().numpy()[0, -1]


class OpenVino(Peer):
    """The vision encoder from the plain ONNX graph; the decoder from torch, with the KV cache as its state (make_openvino.py). In int8 as
    its makers have it: the decoder's weights in 8 bits, vision's activations too, by scales that were found beforehand."""

    def __init__(self, model: Path, dtype, threads, vision=True):
        import openvino

        core = openvino.Core()
        options = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
        options |= {} if dtype == "int8" else {"INFERENCE_PRECISION_HINT": dtype}

        def request(path):
            return core.compile_model(model / path, "CPU", options).create_infer_request()

        int8 = dtype == "int8"
        table = "onnx/embed_tokens.onnx"
        self.table = request(table if (model / table).exists() else "onnx/embed_tokens_q4.onnx")  # the same table
        self.decoder = request("openvino/decoder-int8.xml" if int8 else "openvino/decoder.xml")
        if vision:
            self.vision = request("openvino/vision-int8.xml" if int8 else "onnx/vision_encoder.onnx")
            self.pixels = pixels(1, self.vision.model_inputs[0].partial_shape[-1].get_length())
            self.mask = np.ones((1, 1, *self.pixels.shape[-2:]), bool)
        self.width = self.decoder.model_inputs[0].partial_shape[-1].get_length()

    def encode(self, count):
        found = []
        for _ in range(count):
            self.vision.infer({"pixel_values": self.pixels, "pixel_attention_mask": self.mask})
            found.append(self.vision.get_output_tensor(0).data.copy())
        return np.concatenate(found)

    def embed(self, ids):
        self.table.infer({"input_ids": ids})
        return self.table.get_output_tensor(0).data

    def start(self):
        self.decoder.reset_state()
        self.length = 0

    def read(self, embeds):
        start, self.length = self.length, self.length + embeds.shape[1]
        positions = np.arange(start, self.length)[None]
        self.decoder.infer({"embeds": embeds, "mask": np.ones((1, self.length), np.int64), "positions": positions, "beam": np.zeros(1, np.int32)})
        return self.decoder.get_output_tensor(0).data[0, -1].argmax()

    def logits(self, embeds):
        self.read(embeds)
        return self.decoder.get_output_tensor(0).data[0, -1]
