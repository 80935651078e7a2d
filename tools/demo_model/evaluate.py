"""Held-out scenes as files, the reference's answers to them, and the score of anybody's answers."""

import json
from collections import defaultdict

import numpy as np
import torch
from PIL import Image

from .questions import TASKS, ask
from .render import render
from .scenes import sample_scene

HELD_OUT_SEED = 990_000  # training seeds stay below
ALWAYS = ("number", "word", "direction")  # rare, so asked of every scene that allows them
OTHERS = 3
BARS = {"color": 95, "exists": 95, "direction": 95, "shape": 90, "count": 90, "position": 90, "number": 85, "list": 80}


def held_out_scene(index):
    rng = np.random.default_rng((HELD_OUT_SEED, index))
    scene = sample_scene(rng)
    possible = {task: question for task in TASKS if (question := ask(task, scene, rng))}
    others = [task for task in possible if task not in ALWAYS]
    chosen = set(rng.permutation(others)[:OTHERS])
    questions = [q for task, q in possible.items() if task in ALWAYS or task in chosen]
    return scene, render(scene, rng), questions


def export_scenes(folder, scenes):
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "questions.jsonl", "w") as out:
        for index in range(scenes):
            _, picture, questions = held_out_scene(index)
            name = f"scene_{index:04}.png"
            Image.fromarray(picture).save(folder / name)
            for q in questions:
                out.write(json.dumps({"image": name, "task": q.task, "question": q.question, "expected": q.answer}) + "\n")


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@torch.no_grad()
def answer_with_reference(model_folder, questions_path, answers_path):
    """Greedy answers of `transformers` in float32."""
    from transformers import AutoProcessor, Idefics3ForConditionalGeneration

    processor = AutoProcessor.from_pretrained(model_folder, backend="pil")
    model = Idefics3ForConditionalGeneration.from_pretrained(model_folder, dtype=torch.float32).eval()
    with open(answers_path, "w") as out:
        for entry in read_lines(questions_path):
            content = [{"type": "image"}, {"type": "text", "text": entry["question"]}]
            prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
            image = Image.open(questions_path.parent / entry["image"])
            inputs = processor(text=prompt, images=[image], return_tensors="pt")
            ids = model.generate(**inputs, max_new_tokens=96, do_sample=False)[0, inputs["input_ids"].shape[1] :]
            answer = processor.tokenizer.decode(ids, skip_special_tokens=True).strip()
            out.write(json.dumps({**entry, "answer": answer}) + "\n")


def _as_set(answer):
    text = answer.lower().removeprefix("the image shows ").rstrip(".")
    return sorted(text.replace(" and ", ", ").split(", "))


def score(answered):
    """Rows (task, questions, exact matches), and one more for lists compared without their order."""
    counts = defaultdict(lambda: [0, 0])
    for entry in answered:
        exact, expected, answer = entry["answer"] == entry["expected"], entry["expected"], entry["answer"]
        rows = {entry["task"]: exact}
        if entry["task"] in ("list", "describe"):
            rows[f"{entry['task']}, in any order"] = _as_set(answer) == _as_set(expected)
        for name, right in rows.items():
            counts[name][0] += 1
            counts[name][1] += right
    return [(name, *counts[name]) for name in sorted(counts, key=lambda name: (TASKS.index(name.split(",")[0]), name))]


def table(*answered):
    """A Markdown table; each file of answers to the same questions is a column, under its name."""
    names, files = zip(*answered)
    columns = [score(entries) for entries in files]
    lines = [f"| task | questions | {' | '.join(names)} | aim |", "|---|---:|" + "---:|" * (len(names) + 1)]
    for rows in zip(*columns, strict=True):
        task, count, _ = rows[0]
        aim = BARS.get(task.split(",")[0]) if task != "list" else None
        shares = " | ".join(f"{100 * right / count:.1f} %" for _, _, right in rows)
        lines.append(f"| {task} | {count} | {shares} | {f'{aim} %' if aim else ''} |")
    return "\n".join(lines)


def same_answers(first, second):
    """How many answers are equal to the letter."""
    return sum(a["answer"] == b["answer"] for a, b in zip(first, second, strict=True))
