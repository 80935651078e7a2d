"""Small byte-level BPE tokenizers laid out as the published ones, trained on text held here."""

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

LEADING = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>", "<reponame>", "<file_sep>", "<filename>"]
IMAGE_MARKERS = ["<fake_token_around_image>", "<image>", "<end_of_utterance>"]
TILE_MARKERS = [f"<row_{r}_col_{c}>" for r in range(1, 7) for c in range(1, 7)] + ["<global-img>"]
# Published vocabularies merge newlines: an expansion must be tokenised as one string to come out right.
TEXT = [
    "User: Assistant: System: user assistant system row col global img image",
    "What is in this image? Can you describe this image? How many people are in the picture?",
    "The image shows a red car, a blue bird and two green trees in front of a white house.",
    "There is a cat on the table and a dog under the chair. The answer is yes. The answer is no.",
    "Describe the first picture, then the second one. What colour is the sign? Is the door open?",
    "A robot looks at the camera; the camera looks at the robot.\n\nNothing else is in the room.\n",
    "One line.\nAnother line.\n\nA paragraph.\n\nAnother paragraph.\n\n",
] * 4


def make_tokenizer(vocab_size, v1=False, end=IMAGE_MARKERS[-1]):
    """`vocab_size` counts the added tokens. `v1` has no tokens for the tiles' places, as the first 2.2B has none."""
    added = IMAGE_MARKERS[:2] + ([] if v1 else TILE_MARKERS) + [end]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel(add_prefix_space=True, trim_offsets=True, use_regex=True)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(added),
        special_tokens=LEADING,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in added])
    if tokenizer.get_vocab_size() != vocab_size:
        raise ValueError(f"vocabulary of {tokenizer.get_vocab_size()} tokens, {vocab_size} wanted")
    return tokenizer
