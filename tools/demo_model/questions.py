"""Questions about a scene, in varied words, with one canonical answer each.

A question is asked only where its answer is beyond dispute: the colour of *the* circle needs exactly one circle, and a
thing near the border between two positions is never asked for its position.
"""

from dataclasses import dataclass

from .scenes import COLOURS, SHAPES

NUMBERS = ["Zero", "One", "Two", "Three", "Four", "Five", "Six", "Seven"]
PLURALS = {"cross": "crosses", **{kind: kind + "s" for kind in [*SHAPES, "arrow"] if kind != "cross"}}
POSITIONS = [
    ["In the top left.", "At the top.", "In the top right."],
    ["On the left.", "In the center.", "On the right."],
    ["In the bottom left.", "At the bottom.", "In the bottom right."],
]
BORDER = 0.045  # of the picture: nearer to a border between two positions, people disagree

# How often each task is asked, where it can be.
WEIGHTS = {
    "list": 2.0,
    "describe": 1.0,
    "color": 1.6,
    "shape": 1.6,
    "count": 3.0,
    "exists": 1.4,
    "position": 4.0,
    "relation": 1.0,
    "number": 4.0,
    "word": 3.0,
    "direction": 3.5,
}

TEMPLATES = {
    "list": [
        "What objects are in this image?", "What objects are in the image?", "What objects can you see?", "What is in this image?",
        "What is in the picture?", "What do you see?", "What can you see in this image?", "List the objects in this image.",
        "List all objects.", "Name the objects in the picture.", "Which objects are in this image?", "What things are in this picture?",
    ],
    "describe": [
        "Describe this image.", "Can you describe this image?", "Describe the image.", "Describe what you see.", "Describe this picture.",
        "Describe the scene.", "What does this image show?", "What does the picture show?", "Give a short description of this image.",
        "Caption this image.",
    ],
    "color": [
        "What color is the {x}?", "What colour is the {x}?", "What is the color of the {x}?", "Which color is the {x}?",
        "What is the colour of the {x}?", "Which colour does the {x} have?", "What color does the {x} have?", "Name the color of the {x}.",
        "Tell me the color of the {x}.", "The {x} is what color?",
    ],
    "shape": [
        "What shape is the {x} object?", "What is the {x} object?", "What is the shape of the {x} object?", "Which shape is {x}?",
        "What shape is the {x} thing?", "What shape does the {x} object have?", "What is the {x} thing?", "Which object is {x}?", "Name the {x} shape.",
    ],
    "count": [
        "How many {xs} are there?", "How many {xs} are in this image?", "How many {xs} do you see?", "How many {xs} can you see?",
        "Count the {xs}.", "What is the number of {xs}?", "How many {xs} are in the picture?", "How many {xs}?",
    ],
    "exists": [
        "Is there {a x}?", "Is there {a x} in this image?", "Do you see {a x}?", "Can you see {a x}?", "Does the image contain {a x}?",
        "Is there {a x} in the picture?", "Does the picture show {a x}?", "Are there any {xs}?", "Is {a x} in the image?",
    ],
    "position": [
        "Where is the {x}?", "Where is the {x} in the image?", "In which part of the image is the {x}?", "Where can you see the {x}?",
        "What is the position of the {x}?", "Where in the picture is the {x}?", "Where is the {x} located?",
    ],
    "relation": [
        "What is to the {side} of the {x}?", "What is {side} of the {x}?", "What do you see {side} of the {x}?",
        "Which object is to the {side} of the {x}?", "What is on the {side} side of the {x}?",
    ],
    "number": [
        "What number is shown?", "What number is this?", "Which number is in the image?", "What number do you see?", "Read the number.",
        "What is the number in this image?", "What number is printed?", "What is the number?", "What number is in this image?",
        "What does it say?", "Read the text.",
    ],
    "word": [
        "What word is shown?", "What does the text say?", "What does it say?", "Read the text.", "Read the word.", "Which word is in the image?",
        "What is written in this image?", "What word do you see?", "What text is in this image?", "What does the sign say?",
    ],
    "direction": [
        "Which way does the arrow point?", "Where does the arrow point?", "In which direction does the arrow point?",
        "What direction is the arrow pointing?", "Which direction does the arrow show?", "What is the direction of the arrow?",
        "Which way is the arrow pointing?", "Which way should I go?", "Where is the arrow pointing to?",
    ],
}
PREFIXES = ["Please tell me: ", "Tell me, ", "Question: ", "Hello! ", "Look at the image. "]


@dataclass(frozen=True)
class Question:
    task: str
    question: str
    answer: str


def with_article(words):
    return ("an " if words[0] in "aeiou" else "a ") + words


def name_of(thing):
    if thing.kind == "text":
        return f"the {'number' if thing.text.isdigit() else 'word'} {thing.text}"
    return with_article(f"{thing.colour} {thing.kind}")


def _capital(sentence):
    return sentence[0].upper() + sentence[1:]


def listing(things):
    names = [name_of(thing) for thing in things]
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def wording(task, rng, **blanks):
    question = TEMPLATES[task][rng.integers(len(TEMPLATES[task]))]
    for blank, words in blanks.items():
        question = question.replace("{" + blank.replace("_", " ") + "}", words)
    style = rng.random()
    if style < 0.12:
        question = PREFIXES[rng.integers(len(PREFIXES))] + question
    elif style < 0.2:
        question = question[0].lower() + question[1:]
    if rng.random() < 0.08:
        question = question.rstrip("?.")
    return question


def _unique(things, key):
    values = [key(thing) for thing in things]
    return [thing for thing, value in zip(things, values) if value is not None and values.count(value) == 1]


def _reference(thing, things, rng):
    """Words that mean this thing and no other, or None."""
    full = [t for t in things if (t.kind, t.colour) == (thing.kind, thing.colour)]
    short = [t for t in things if t.kind == thing.kind]
    if len(full) > 1:
        return None
    return thing.kind if len(short) == 1 and rng.random() < 0.7 else f"{thing.colour} {thing.kind}"


def position_of(thing, scene):
    """The position's sentence, or None near a border."""
    x, y = thing.x / scene.width, thing.y / scene.height
    if any(abs(value - border) < BORDER for value in (x, y) for border in (1 / 3, 2 / 3)):
        return None
    return POSITIONS[int(y * 3)][int(x * 3)]


def _ask_list(task, scene, rng):
    listed = listing(scene.ordered)
    return wording(task, rng), _capital(listed) + "." if task == "list" else f"The image shows {listed}."


def _ask_color(task, scene, rng):
    choices = _unique(scene.things, lambda t: t.kind if t.colour else None)
    if choices:
        thing = choices[rng.integers(len(choices))]
        return wording(task, rng, x=thing.kind), _capital(thing.colour) + "."


def _ask_shape(task, scene, rng):
    choices = _unique(scene.things, lambda t: t.colour)
    if choices:
        thing = choices[rng.integers(len(choices))]
        return wording(task, rng, x=thing.colour), _capital(with_article(thing.kind)) + "."


def _ask_count(task, scene, rng):
    shapes = [t for t in scene.things if t.colour]
    style = rng.random()
    if style < 0.3 and len(shapes) == len(scene.things):
        return wording(task, rng, xs="objects"), NUMBERS[len(shapes)] + "."
    kinds, colours = [t.kind for t in shapes], [t.colour for t in shapes]
    present = shapes and rng.random() < 0.85
    if style < 0.75:
        kind = str(rng.choice(kinds)) if present else SHAPES[rng.integers(len(SHAPES))]
        return wording(task, rng, xs=PLURALS[kind]), NUMBERS[kinds.count(kind)] + "."
    colour = str(rng.choice(colours)) if present else COLOURS[rng.integers(len(COLOURS))]
    return wording(task, rng, xs=f"{colour} objects"), NUMBERS[colours.count(colour)] + "."


def _ask_exists(task, scene, rng):
    shapes = [t for t in scene.things if t.colour]
    if shapes and rng.random() < 0.5:
        thing = shapes[rng.integers(len(shapes))]
        kind, colour = thing.kind, thing.colour
    else:
        # Half of a present thing makes the hardest absent one.
        kind, colour = SHAPES[rng.integers(len(SHAPES))], COLOURS[rng.integers(len(COLOURS))]
        if shapes and rng.random() < 0.6:
            thing = shapes[rng.integers(len(shapes))]
            kind, colour = (thing.kind, colour) if rng.random() < 0.5 else (kind, thing.colour)
    if rng.random() < 0.5:
        words, plural, there = kind, PLURALS[kind], any(t.kind == kind for t in shapes)
    else:
        words, plural = f"{colour} {kind}", f"{colour} {PLURALS[kind]}"
        there = any((t.kind, t.colour) == (kind, colour) for t in shapes)
    return wording(task, rng, a_x=with_article(words), xs=plural), "Yes." if there else "No."


def _ask_position(task, scene, rng):
    thing = scene.things[rng.integers(len(scene.things))]
    position = position_of(thing, scene)
    words = _reference(thing, scene.things, rng) if thing.colour else ("number" if thing.text.isdigit() else "word")
    if position and words:
        return wording(task, rng, x=words), position


def _ask_relation(task, scene, rng):
    if not 2 <= len(scene.things) <= 4:
        return None
    thing = scene.things[rng.integers(len(scene.things))]
    words = _reference(thing, scene.things, rng) if thing.colour else None
    side = "left" if rng.random() < 0.5 else "right"
    beyond = [t for t in scene.things if (t.x < thing.x if side == "left" else t.x > thing.x)]
    clear = all(abs(t.x - thing.x) > 0.08 * scene.width for t in scene.things if t is not thing)
    if words and clear and len(beyond) <= 1:
        return wording(task, rng, side=side, x=words), _capital(name_of(beyond[0])) + "." if beyond else "Nothing."


def _ask_text(task, scene, rng):
    texts = [t.text for t in scene.things if t.kind == "text"]
    if texts and texts[0].isdigit() == (task == "number"):
        return wording(task, rng), texts[0] + "."


def _ask_direction(task, scene, rng):
    arrows = [t for t in scene.things if t.kind == "arrow"]
    if len(arrows) == 1:
        return wording(task, rng), _capital(arrows[0].direction) + "."


ASK = {
    "list": _ask_list,
    "describe": _ask_list,
    "color": _ask_color,
    "shape": _ask_shape,
    "count": _ask_count,
    "exists": _ask_exists,
    "position": _ask_position,
    "relation": _ask_relation,
    "number": _ask_text,
    "word": _ask_text,
    "direction": _ask_direction,
}
TASKS = list(ASK)


def ask(task, scene, rng):
    """A question of this task about the scene, or None if the scene has no clear answer."""
    asked = ASK[task](task, scene, rng)
    return Question(task, *asked) if asked else None


def ask_several(scene, rng, count):
    """`count` questions of random tasks; a task may come more than once."""
    weights = [WEIGHTS[task] for task in TASKS]
    total, questions = sum(weights), []
    while len(questions) < count:
        question = ask(TASKS[rng.choice(len(TASKS), p=[w / total for w in weights])], scene, rng)
        if question:
            questions.append(question)
    return questions
