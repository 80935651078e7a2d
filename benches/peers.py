"""What others make of the same weights: the pieces of an answer, timed one by one."""

import time
from pathlib import Path

import numpy as np

SUFFIX = {"f32": "", "int8": "_int8"}


class OnnxRuntime:
    """The exported graphs in Python's onnxruntime, driven as well as it can be: IO binding, and a KV cache that never leaves it."""

    def __init__(self, model: Path, dtype, threads):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1

        def session(graph):
            return onnxruntime.InferenceSession(model / "onnx" / f"{graph}{SUFFIX[dtype]}.onnx", options, providers=["CPUExecutionProvider"])

        self.value = onnxruntime.OrtValue.ortvalue_from_numpy
        self.vision, self.embed, self.decoder = session("vision_encoder"), session("embed_tokens"), session("decoder_model_merged")
        self.cache = [i for i in self.decoder.get_inputs() if i.name.startswith("past")]
        self.size = self.vision.get_inputs()[0].shape[-1]

    def tile(self):
        """Seconds for one tile through vision encoder and connector."""
        pixels = np.random.default_rng(0).uniform(-1, 1, (1, 1, 3, self.size, self.size)).astype(np.float32)
        mask = np.ones((1, 1, self.size, self.size), bool)
        start = time.perf_counter()
        self.vision.run(None, {"pixel_values": pixels, "pixel_attention_mask": mask})
        return time.perf_counter() - start

    def generate(self, prompt_tokens, steps):
        """Seconds for the prompt, and for each greedy step after it."""
        past = [self.value(np.zeros((1, i.shape[1], 0, i.shape[3]), np.float32)) for i in self.cache]
        ids, length, seconds = np.arange(prompt_tokens)[None] % 400, 0, []
        for _ in range(steps):
            start = time.perf_counter()
            (embeds,) = self.embed.run(None, {"input_ids": ids})
            total = length + ids.shape[1]
            binding = self.decoder.io_binding()
            binding.bind_cpu_input("inputs_embeds", embeds)
            binding.bind_cpu_input("attention_mask", np.ones((1, total), np.int64))
            binding.bind_cpu_input("position_ids", np.arange(length, total)[None])
            for i, value in zip(self.cache, past):
                binding.bind_ortvalue_input(i.name, value)
            for output in self.decoder.get_outputs():
                binding.bind_output(output.name, "cpu")
            self.decoder.run_with_iobinding(binding)
            logits, *past = binding.get_outputs()
            ids, length = np.array([[logits.numpy()[0, -1].argmax()]]), total
            seconds.append(time.perf_counter() - start)
        return seconds[0], seconds[1:]


class Transformers:
    """The reference on torch, with its scaled-dot-product attention."""

    def __init__(self, model: Path, dtype, threads):
        import torch
        from transformers import AutoModelForImageTextToText

        torch.set_num_threads(threads)
        self.torch = torch
        self.dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[dtype]
        self.model = AutoModelForImageTextToText.from_pretrained(model, dtype=self.dtype).eval()
        self.size = self.model.config.vision_config.image_size

    def tile(self):
        pixels = self.torch.rand(1, 1, 3, self.size, self.size).to(self.dtype)
        with self.torch.inference_mode():
            start = time.perf_counter()
            self.model.model.get_image_features(pixels)
            return time.perf_counter() - start

    def generate(self, prompt_tokens, steps):
        text, head, seconds, past = self.model.model.text_model, self.model.lm_head, [], None
        ids = self.torch.arange(prompt_tokens)[None] % 400
        with self.torch.inference_mode():
            for _ in range(steps):
                start = time.perf_counter()
                out = text(input_ids=ids, past_key_values=past, use_cache=True)
                past, ids = out.past_key_values, head(out.last_hidden_state[:, -1:]).argmax(-1)
                seconds.append(time.perf_counter() - start)
        return seconds[0], seconds[1:]
