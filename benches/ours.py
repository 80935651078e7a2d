"""Our library with the measures of a peer (peers.py), through the Python package; pictures are raw pixels, as a camera gives them."""

import random

from library import Library
from smolvlm import Frame

# What becomes so many tiles: width and height of a picture, and its longest edge where that is not the model's own.
PICTURES = {
    1: (512, 512, 512),
    3: (1024, 512, 1024),
    5: (1024, 1024, 1024),
    7: (1536, 1024, 1536),
    10: (1536, 1536, 1536),
    13: (640, 480),
    17: (1024, 1024),
}


class Ours:
    def __init__(self, library, model, backend, dtype, threads, packed_cache_dir=None):
        self.model = Library(library, model, backend, dtype, threads, packed_cache_dir).model
        self.pictures, self.fixed = {}, {}

    def ask(self, tiles, text_tokens, new_tokens):
        """Metrics of an answer of `new_tokens` to a question of `text_tokens` about a picture of so many tiles. The tokenizer makes one
        token of each exclamation mark."""
        if tiles not in self.pictures:
            self.pictures[tiles] = self.picture(*PICTURES[tiles]) if tiles else ([], {})
        picture, scale = self.pictures[tiles]
        metrics = self.model.ask(*picture, "!" * text_tokens, max_new_tokens=new_tokens, **scale).metrics
        if (metrics.tiles, metrics.generated_tokens) != (tiles, new_tokens):
            raise RuntimeError(f"{metrics.generated_tokens} tokens and {metrics.tiles} tiles, {new_tokens} and {tiles} wanted")
        return metrics

    @staticmethod
    def picture(width, height, longest_edge=None):
        """Noise."""
        pixels = random.Random(0).randbytes(3 * width * height)
        return [Frame(pixels, width, height, "rgb8")], {"longest_edge": longest_edge} if longest_edge else {}

    def prompt(self, tiles, text_tokens):
        """Tokens of the whole prompt: those of the text, of the picture, and of the chat template."""
        if tiles not in self.fixed:
            self.fixed[tiles] = self.ask(tiles, 1, 1).prompt_tokens - 1
        return [self.fixed[tiles] + text_tokens]

    def _ask(self, tiles, prompt_tokens, new_tokens):
        metrics = self.ask(tiles, prompt_tokens - self.prompt(tiles, 0)[0], new_tokens)
        if metrics.prompt_tokens != prompt_tokens:
            raise RuntimeError(f"a prompt of {metrics.prompt_tokens} tokens, {prompt_tokens} wanted")
        return metrics

    def tiles(self, count):
        return [self.ask(count, 1, 1).vision_ms / 1e3]

    def generate(self, prompt_tokens, steps):
        metrics = self._ask(0, prompt_tokens, steps + 1)
        return [metrics.prefill_ms / 1e3] + [metrics.decode_ms / steps / 1e3] * steps

    def answer(self, tiles, prompt_tokens, steps):
        """With the time that the picture's preprocessing takes, which peers are spared."""
        metrics = self._ask(tiles, prompt_tokens, steps)
        return [metrics.time_to_first_token_ms / 1e3, metrics.total_ms / 1e3]
