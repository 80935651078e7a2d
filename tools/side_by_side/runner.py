"""Loads one engine, asks it some questions, and prints what each took: a JSON job on standard input, a JSON object a line back.

A process of its own, so that its peak memory is its own.
"""

import io
import json
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


class Ours:
    """libsmolvlm through its Python package: the backends `candle` and `onnx`."""

    def __init__(self, job):
        sys.path.insert(0, str(ROOT))
        from smolvlm_demo import package

        smolvlm = package()
        self.finished = smolvlm.FinishReason.END_OF_TEXT
        self.budget = {"longest_edge": job["longest_edge"]}
        start = time.perf_counter()
        self.model = smolvlm.Model(job["model"], backend=job["backend"], dtype=job["dtype"], num_threads=job["threads"])
        self.load_ms = (time.perf_counter() - start) * 1e3

    def ask(self, images, prompt, max_new_tokens):
        answer = self.model.ask(*images, prompt, max_new_tokens=max_new_tokens, **self.budget)
        m = answer.metrics
        # The first token comes out of the prefill; the one that ends an answer is a step too, and is not in it.
        steps = len(answer.tokens) - (answer.finish_reason != self.finished)
        return answer.text, m.dtype, m.tiles, m.prompt_tokens, m.time_to_first_token_ms, steps, m.decode_ms, m.total_ms


class Transformers:
    """The reference: Hugging Face transformers on torch, greedy, with its own preprocessing."""

    DTYPES = {"auto": "float32", "f32": "float32", "bf16": "bfloat16"}

    def __init__(self, job):
        try:
            import torch
            from transformers import AutoModelForImageTextToText, AutoProcessor
        except ImportError as error:
            raise SystemExit(f"python: {error}; tools/requirements.txt lists what it needs") from None
        if job["dtype"] not in self.DTYPES:
            raise SystemExit(f"python:{job['dtype']}: transformers runs {', '.join(self.DTYPES)} here")
        if job["threads"]:
            torch.set_num_threads(job["threads"])
        self.torch, self.dtype = torch, getattr(torch, self.DTYPES[job["dtype"]])
        self.budget = {"size": {"longest_edge": job["longest_edge"]}} if job["longest_edge"] else {}
        start = time.perf_counter()
        self.processor = AutoProcessor.from_pretrained(job["model"], backend="pil")
        self.model = AutoModelForImageTextToText.from_pretrained(job["model"], dtype=self.dtype).eval()
        self.load_ms = (time.perf_counter() - start) * 1e3

    def ask(self, images, prompt, max_new_tokens):
        from PIL import Image

        start, times = time.perf_counter(), []
        content = [*({"type": "image"} for _ in images), {"type": "text", "text": prompt}]
        text = self.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        pictures = [Image.open(io.BytesIO(data)).convert("RGB") for data in images]
        inputs = self.processor(text=text, images=pictures, return_tensors="pt", **self.budget)
        pixels = inputs["pixel_values"] = inputs["pixel_values"].to(self.dtype)
        count = inputs["input_ids"].shape[1]
        with self.torch.inference_mode():
            ids = self.model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False, streamer=Clock(times))
        end = time.perf_counter()
        first = times[1]  # it hands over the prompt first
        answer = self.processor.tokenizer.decode(ids[0, count:], skip_special_tokens=True).strip()
        dtype = {"float32": "f32", "bfloat16": "bf16"}[str(self.dtype).rpartition(".")[2]]
        return answer, dtype, pixels.shape[1], count, (first - start) * 1e3, len(times) - 2, (times[-1] - first) * 1e3, (end - start) * 1e3


class Clock:
    """Looks at the time when generate() hands over a token."""

    def __init__(self, times):
        self.times = times

    def put(self, _):
        self.times.append(time.perf_counter())

    def end(self):
        pass


FIELDS = ("text", "dtype", "tiles", "prompt_tokens", "first_token_ms", "steps", "decode_ms", "total_ms")


def peak_mib():
    """Of this process since it began; getrusage's figure would begin with its parent's."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def main():
    job = json.load(sys.stdin)
    images = [Path(path).read_bytes() for path in job["images"]]
    try:
        engine = (Transformers if job["backend"] == "python" else Ours)(job)
        print(json.dumps({"load_ms": engine.load_ms}), flush=True)
        engine.ask(images, next(iter(job["tasks"].values())), 2)  # for warming up
        for task, prompt in job["tasks"].items():
            found = dict(zip(FIELDS, engine.ask(images, prompt, job["max_new_tokens"])))
            print(json.dumps({"task": task, **found}), flush=True)
    except Exception as error:
        raise SystemExit(f"{job['backend']}:{job['dtype']}: {error}") from None
    print(json.dumps({"peak_mib": peak_mib()}), flush=True)


if __name__ == "__main__":
    main()
