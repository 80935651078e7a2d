"""A byte-level BPE tokenizer with the family's special tokens, and the prompt's fixed pieces in its ids."""

import json
import re

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from .questions import ask_several
from .scenes import sample_scene
from .tiles import TOKENS

FIRST_SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
LAST_SPECIALS = [
    "<global-img>",
    *(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)),
    "<fake_token_around_image>",
    "<image>",
    "<end_of_utterance>",
]
VOCAB = 640
CORPUS_SCENES = 3000


def _corpus(seed):
    rng = np.random.default_rng(seed)
    for _ in range(CORPUS_SCENES):
        for question in ask_several(sample_scene(rng), rng, 6):
            # Printed capitals are spelled letter by letter, so no merge may be learned from them.
            text = f"{question.question}\nAssistant: {question.answer}\n\nUser: system"
            yield re.sub(r"[A-Z]{2,}", "", text)


def _may_merge(token):
    return not re.search(r"[A-Z][A-Z]|Ġ[A-Z]$", token)


def train_tokenizer(seed=0):
    splitter = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    learned = Tokenizer(models.BPE())
    learned.pre_tokenizer = splitter
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=900, initial_alphabet=alphabet, show_progress=False)
    learned.train_from_iterator(_corpus(seed), trainer)

    # As in the published tokenizer, the blank line between tiles is one token.
    vocabulary, merges = [*FIRST_SPECIALS, *alphabet, "ĊĊ"], [("Ċ", "Ċ")]
    room = VOCAB - len(LAST_SPECIALS)
    for left, right in json.loads(learned.to_str())["model"]["merges"]:
        usable = left in vocabulary and right in vocabulary and left + right not in vocabulary
        if usable and _may_merge(left + right) and len(vocabulary) < room:
            vocabulary.append(left + right)
            merges.append((left, right))
    vocabulary += [f"<|reserved_{i}|>" for i in range(room - len(vocabulary))] + LAST_SPECIALS

    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(vocabulary)}, merges))
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.ByteLevel()
    specials = [token for token in vocabulary if re.fullmatch(r"<.+>", token)]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    return tokenizer


def image_string(grid):
    """What the processor puts in place of one `<image>`."""
    tokens = "<image>" * TOKENS**2
    text = ""
    for row in range(1, grid.rows + 1):
        for column in range(1, grid.columns + 1):
            text += f"<fake_token_around_image><row_{row}_col_{column}>{tokens}"
        text += "\n"
    return text + ("\n" if grid.rows else "") + f"<fake_token_around_image><global-img>{tokens}<fake_token_around_image>"


class PromptEncoder:
    """The chat template's text as ids, in the parts that a batch shares or not."""

    def __init__(self, tokenizer):
        self.tokenizer, self.prefixes = tokenizer, {}
        self.image_id = tokenizer.token_to_id("<image>")

    def _ids(self, text):
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def prefix(self, grid):
        if grid not in self.prefixes:
            self.prefixes[grid] = self._ids("<|im_start|>User:" + image_string(grid))
        return self.prefixes[grid]

    def question(self, text, follows=False):
        """`follows`: an answer, rather than the picture."""
        return self._ids(("\nUser: " if follows else "") + text + "<end_of_utterance>\nAssistant:")

    def answer(self, text):
        return self._ids(f" {text}<end_of_utterance>")
