"""mistral.rs out of its wheel, with in-situ quantisation of a checkpoint (f32, q8_0, q4k).

Its interface takes text and hands out words, no embeddings and no logits: the vision encoder alone cannot be measured through it. But it
says the logarithm of the probability of as many tokens as it is asked for, and all of them are as good as logits.
"""

import json
import os
import tempfile
from pathlib import Path

import numpy as np

RAW = "{% for m in messages %}{% if m['content'] is string %}{{ m['content'] }}{% else %}{{ m['content'][0]['text'] }}{% endif %}{% endfor %}"
ANSWER = 64  # tokens, as long as quality.py's


class MistralRs:
    def __init__(self, model, precision, threads):
        os.environ["RAYON_NUM_THREADS"] = str(threads)
        import mistralrs
        from tokenizers import Tokenizer
        from transformers import AutoConfig

        self.api, self.tokenizer = mistralrs, Tokenizer.from_file(str(model / "tokenizer.json"))
        self.folder = tempfile.TemporaryDirectory()
        copy = Path(self.folder.name)
        for file in model.resolve().iterdir():
            if file.is_file() and file.name != "config.json":
                (copy / file.name).symlink_to(file)
        # It wants every setting written out.
        config = AutoConfig.from_pretrained(model)
        text = config.text_config.to_dict()
        rope = text["rope_parameters"]["rope_theta"]
        whole = config.to_dict() | {"text_config": text | {"rope_theta": rope}, "vision_config": config.vision_config.to_dict()}
        (copy / "config.json").write_text(json.dumps(whole, default=str))
        (copy / "raw.jinja").write_text(RAW)
        which = mistralrs.Which.MultimodalPlain(model_id=str(copy), arch=mistralrs.MultimodalArchitecture.Idefics3)
        isq = None if precision == "f32" else precision
        self.runner = mistralrs.Runner(which=which, in_situ_quant=isq, max_seqs=1, jinja_explicit=str(copy / "raw.jinja"))
        self.vocab = config.text_config.vocab_size
        self.asked = 0
        self.question, self.answer = [], []

    def ask(self, text, tokens, **options):
        messages = [{"role": "user", "content": text}]
        return self.runner.send_chat_completion_request(
            self.api.ChatCompletionRequest(model="default", messages=messages, max_tokens=tokens, temperature=0.0, **options)
        )

    def logits(self, ids, start):
        """After `ids`, of which `start` were known the last time: NaN where no text has these tokens and no answer of its own has them either.
        It finds itself how many of them it has read before."""
        if start == 0:
            self.question, self.answer = ids, None
        text = self.same_text(ids)
        if text is not None:
            return self.row(self.say(text, 1)[0])
        begun, text = ids[len(self.question) :], self.same_text(self.question)
        if text is not None and self.answer is None and len(begun) <= ANSWER:
            self.answer = self.say(text, ANSWER + 1)
        answer = self.answer or []
        if len(begun) < len(answer) and [entry.token for entry in map(self.chosen, answer[: len(begun)])] == begun:
            return self.row(answer[len(begun)])
        return np.full(self.vocab, np.nan, np.float32)

    def same_text(self, ids):
        """The text that has these tokens, or None: two line ends become another token when nothing follows them."""
        text = self.tokenizer.decode(ids, skip_special_tokens=False)
        return text if self.tokenizer.encode(text).ids == ids else None

    def say(self, text, tokens):
        return self.ask(text, tokens, logprobs=True, top_logprobs=self.vocab, ignore_eos=True).choices[0].logprobs.content

    @staticmethod
    def chosen(content):
        return max(content.top_logprobs, key=lambda entry: entry.logprob)

    def row(self, content):
        found = np.full(self.vocab, -1e4, np.float32)
        for entry in content.top_logprobs:
            found[entry.token] = entry.logprob
        return found

    def generate(self, prompt_tokens, steps):
        """Seconds of a prompt and of each step, as it says itself. A prompt begins like none before it, which would be known already."""
        usage = self.ask(self.text(prompt_tokens), steps + 1, ignore_eos=True).usage
        if usage.prompt_tokens != prompt_tokens or usage.completion_tokens != steps + 1:
            raise SystemExit(f"{usage.prompt_tokens} and {usage.completion_tokens} tokens, {prompt_tokens} and {steps + 1} wanted")
        return [usage.total_prompt_time_sec, *[usage.total_completion_time_sec / steps] * steps]

    def text(self, tokens):
        self.asked += 1
        for seed in range(100):
            ids = np.random.default_rng([self.asked, seed]).integers(200, 400, tokens)
            ids[1:] = ids[1]
            text = self.tokenizer.decode(ids.tolist(), skip_special_tokens=False)
            if self.tokenizer.encode(text).ids == ids.tolist():
                return text
        raise SystemExit(f"no text of {tokens} tokens found")
