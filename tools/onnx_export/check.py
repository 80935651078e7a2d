"""What was written, against the reference: the same tiles and ids through ONNX Runtime and through transformers in float32."""

import numpy as np
import onnxruntime
import torch

from .variants import SUFFIXES

TILES, TOKENS, SEED = 2, 24, 0


class Reference:
    def __init__(self, model):
        self.config, rng = model.config, np.random.default_rng(SEED)
        size, text = self.config.vision_config.image_size, self.config.text_config
        self.pixels = rng.uniform(-1, 1, (1, TILES, 3, size, size)).astype(np.float32)
        self.ids = rng.integers(0, text.vocab_size, (1, TOKENS))
        self.ids[self.ids == self.config.image_token_id] = 0
        with torch.no_grad():
            features = model.model.get_image_features(torch.from_numpy(self.pixels))
            self.image_features = np.concatenate([rows.numpy() for rows in getattr(features, "pooler_output", features)])
            self.embeds = model.get_input_embeddings()(torch.from_numpy(self.ids)).numpy()
            self.logits = model(input_ids=torch.from_numpy(self.ids)).logits.numpy()

    def differences(self, folder, precision):
        """The largest difference of each graph's output, as a share of the reference's root mean square; how often the likeliest token is the same."""

        def session(graph):
            return onnxruntime.InferenceSession(folder / f"{graph}{SUFFIXES[precision]}.onnx", providers=["CPUExecutionProvider"])

        mask = np.ones((1, TILES, *self.pixels.shape[-2:]), bool)
        (features,) = session("vision_encoder").run(None, {"pixel_values": self.pixels, "pixel_attention_mask": mask})
        (embeds,) = session("embed_tokens").run(None, {"input_ids": self.ids})
        logits = self.decode(session("decoder_model_merged"))
        same = (logits.argmax(-1) == self.logits.argmax(-1)).mean()
        return _difference(features, self.image_features), _difference(embeds, self.embeds), _difference(logits, self.logits), same

    def decode(self, session):
        """A prompt's first half at once, then another piece, then token by token: as an engine would."""
        text = self.config.text_config
        names = [i.name for i in session.get_inputs()]
        cache = {i.name: i for i in session.get_inputs() if i.name.startswith("past")}
        element = np.float16 if next(iter(cache.values())).type == "tensor(float16)" else np.float32
        past = {name: np.zeros((1, text.num_key_value_heads, 0, text.head_dim), element) for name in cache}
        logits, start = [], 0
        for end in [TOKENS // 2, 3 * TOKENS // 4, *range(3 * TOKENS // 4 + 1, TOKENS + 1)]:
            inputs = {
                "inputs_embeds": self.embeds[:, start:end],
                "attention_mask": np.ones((1, end), np.int64),
                "position_ids": np.arange(start, end)[None],
            }
            inputs = {name: value for name, value in inputs.items() if name in names}
            some, *present = session.run(None, {**inputs, **past})
            past, start = dict(zip(past, present)), end
            logits.append(some)
        return np.concatenate(logits, 1)


def _difference(ours, reference):
    ours, reference = ours.astype(np.float64).ravel(), reference.astype(np.float64).ravel()
    return np.abs(ours - reference).max() / np.sqrt((reference**2).mean())
