"""What the models are given: English prose that comes with Python, and questions.

The prose is out of the language reference that `help()` shows (pydoc_data.topics): whole paragraphs without code or tables. It belongs to
a version of Python, which the report names. The first `WINDOWS` pieces of it of `WINDOW` tokens are taken. Long windows lie evenly over all of
it, and overlap where they have to.
"""

import re
from pydoc_data.topics import topics

WINDOW, WINDOWS = 512, 16

QUESTIONS = """What is the capital of France?
Why is the sky blue?
Write a short story about a robot that learns to paint.
How do I boil an egg?
Explain photosynthesis to a child.
What are three benefits of regular exercise?
Name the planets of the solar system in order.
How does a bicycle stay upright?
Write a polite letter that asks a neighbour to keep the noise down.
What is the difference between a lake and a sea?
Give me a recipe for pancakes.
Who was Isaac Newton?
What should I pack for a week in the mountains?
Explain what a prime number is.
How many legs does a spider have?
Describe a quiet morning in a small village.
Write a Python function that reverses a string.
What causes the tides?
Translate "good morning" into Spanish.
What is the boiling point of water at sea level?
Give me five ideas for a birthday present.
How do vaccines work?
Summarise the story of Cinderella in three sentences.
What is 17 plus 25?
Why do leaves change colour in autumn?
What does a librarian do?
Write a haiku about the rain.
How can I sleep better?
What is the largest animal on Earth?
Explain how a rainbow forms.
List the ingredients of a simple salad.
What is democracy?
How do I change a flat tyre?
Describe the taste of a lemon.
What is the purpose of a thermostat?
Who wrote Romeo and Juliet?
Give advice to somebody who starts a new job.
How is glass made?
What is the difference between weather and climate?
Write two sentences about a cat on a sofa.
Why do we have leap years?
What is machine learning?
How do bees make honey?
Tell me a fact about the Moon.
What are the primary colours?
How do I remove a coffee stain from a shirt?
Explain supply and demand in simple words.
What is a good name for a black dog?
Describe how to plant a tree.
What would you see on a walk through a forest?""".splitlines()


def prose():
    """Paragraphs of plain sentences, each once."""
    seen = {}
    for topic in sorted(topics):
        for paragraph in re.split(r"\n\s*\n", topics[topic]):
            lines = paragraph.split("\n")
            indented = any(line.startswith("  ") for line in lines)
            text = " ".join(line.strip() for line in lines)
            letters = sum(character.isalpha() or character in " ,." for character in text)
            if len(text) >= 240 and not indented and text.endswith(".") and letters >= 0.94 * len(text):
                seen.setdefault(re.sub(r"[*`]", "", text))
    return list(seen)


def windows(tokenizer):
    """Ids of the prose."""
    ids = tokenizer.encode("\n\n".join(prose())).ids
    if len(ids) < WINDOW * WINDOWS:
        raise SystemExit(f"{len(ids)} tokens of prose, {WINDOW * WINDOWS} wanted: another Python")
    return [ids[start : start + WINDOW] for start in range(0, WINDOW * WINDOWS, WINDOW)]


def long_windows(tokenizer, tokens, count):
    """Ids of so many windows of so many tokens."""
    ids = tokenizer.encode("\n\n".join(prose())).ids
    if len(ids) < tokens:
        raise SystemExit(f"--context: {tokens} given, {len(ids)} tokens of prose")
    starts = [(len(ids) - tokens) * number // max(count - 1, 1) for number in range(count)]
    return [ids[start : start + tokens] for start in starts]


def prompts(tokenizer):
    """Ids of the questions in SmolLM2's template."""
    system = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    return [tokenizer.encode(f"{system}<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n").ids for question in QUESTIONS]
