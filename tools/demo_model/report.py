"""The model card of models/demo, around the table that the evaluation measured."""

from .evaluate import read_lines, same_answers, table
from .scenes import COLOURS, SHAPES
from .tiles import LONGEST_EDGE, PATCH, SCALE_FACTOR, TILE, TOKENS

TEXT = """# The demo model

A SmolVLM-architecture (Idefics3) model of {parameters:.2f} million parameters, trained from nothing for this repository, so that
every part of the library can be built, tested and shown without a download. It is **not** a small SmolVLM: it knows a world of
coloured shapes, arrows, printed numbers and short words, and nothing else.

| | |
|---|---|
| shapes | {shapes}; and arrows |
| colors | {colours} |
| text | numbers of one to four digits, and about sixty words in capitals, in some forty fonts |
| tiles | {tile} x {tile} pixels, patches of {patch}, pixel shuffle {scale}: {tokens} tokens a tile; `longest_edge` {longest}: mostly 2 x 2 tiles and the overview |
| vision encoder | {vision_layers} layers of {vision_width}, {vision_heads} heads |
| decoder | {text_layers} layers of {text_width}, {text_heads} heads over {text_kv_heads} key-value heads, vocabulary {vocab} |

## What it answers

Asked about {scenes} scenes that training never saw (their seeds are reserved), through the default processing with tiles, greedy, in
float32, from these bfloat16 weights by `transformers`, and by libsmolvlm through its C functions on each engine and precision.
Right means: equal to the one canonical answer, letter by letter. Of the {questions} answers, as many are to the letter those
of `transformers`: {same}.

{table}

Questions it knows, in several wordings each: what objects are in the image, describe the image, what color is the X, what shape is
the Y object, how many Xs (or Y objects, or objects), is there an X, where is the X, what is left or right of the X, what number or
word is shown, which way does the arrow point. Positions are the nine fields of a 3 x 3 grid, by the object's centre; lists go
from left to right. Every object is at least a sixth of the picture's shorter side, and printed characters are at least
a fifteenth of its width: less than that cannot be told after the resize, by people either. In very wide or very high pictures there
are no squares and rectangles, which the overview tile's distortion makes alike.

## How it was made

`tools/train_demo_model.py`, on two CPU cores, in three stages: the encoder learns from dense labels what each patch and each image
token shows; the decoder learns to answer from symbolic scenes, whose image tokens are a linear code of the true labels; then
a least-squares fit makes the connector speak that code, and everything is trained together on pictures.

{history}

    python -m pip install -r tools/requirements.txt
    python tools/train_demo_model.py train --work DIR && python tools/train_demo_model.py export --work DIR
    python tools/train_demo_model.py eval --export EVAL --scenes {scenes}
    python tools/train_demo_model.py answer EVAL/questions.jsonl reference.jsonl
    python tools/train_demo_model.py answer EVAL/questions.jsonl library.jsonl --library target/release/libsmolvlm.so
    python tools/train_demo_model.py score reference.jsonl library.jsonl
    python tools/export_onnx.py models/demo --precisions fp16,int8

Training goes on from the shipped weights with `train --start models/demo`; the heads that only training needs are in
`tools/demo_model/heads.safetensors`.

`test_image.jpg` is one of the held-out scenes.
"""


def write_report(folder, model, config, reference_path, library_paths, history):
    """`library_paths`: by the name of what answered."""
    reference = read_lines(reference_path)
    answers = {name: read_lines(path) for name, path in library_paths.items()}
    text = TEXT.format(
        **vars(config),
        parameters=sum(p.numel() for p in model.parameters()) / 1e6,
        shapes=", ".join(SHAPES),
        colours=", ".join(COLOURS),
        tile=TILE,
        patch=PATCH,
        scale=SCALE_FACTOR,
        tokens=TOKENS**2,
        longest=LONGEST_EDGE,
        scenes=len({entry["image"] for entry in reference}),
        questions=len(reference),
        same=", ".join(f"{name} {same_answers(reference, entries)}" for name, entries in answers.items()),
        table=table(("`transformers`", reference), *answers.items()),
        history=history,
    )
    (folder / "README.md").write_text(text)
