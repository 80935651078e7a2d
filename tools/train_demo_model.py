#!/usr/bin/env python3
"""Trains, exports and evaluates the small model in models/demo.

    train_demo_model.py train --work DIR [--stages vision,language,joint] [--minutes 40,25,40]
    train_demo_model.py export --work DIR                     writes models/demo
    train_demo_model.py eval --export DIR --scenes 500        held-out scenes as PNG files, and questions.jsonl
    train_demo_model.py answer DIR/questions.jsonl OUT.jsonl  the answers of transformers, greedy, in float32
    train_demo_model.py answer DIR/questions.jsonl OUT.jsonl --library target/release/libsmolvlm.so    the library's
    train_demo_model.py score OUT.jsonl...                    the table (task, questions, right)
    train_demo_model.py report REFERENCE.jsonl NAME=LIBRARY.jsonl... --work DIR    models/demo/README.md, around that table
    train_demo_model.py picture NUMBER                        models/demo/test_image.jpg, one of the held-out scenes

Training resumes from DIR's checkpoint. Every stage takes the minutes it is given, and decays its learning rate towards their end.
"""

import argparse
import os
from pathlib import Path

import cv2
import torch
from PIL import Image
from tokenizers import Tokenizer

from demo_model import evaluate
from demo_model.export import export
from demo_model.joint_stage import train_jointly
from demo_model.language_stage import train_language
from demo_model.report import write_report
from demo_model.run import Run
from demo_model.tokenizer import PromptEncoder, train_tokenizer
from demo_model.vision_stage import train_vision
from library import Library, answer_questions

MODEL = Path(__file__).parent.parent / "models" / "demo"


def tokenizer_of(work):
    path = work / "tokenizer.json"
    if not path.exists():
        work.mkdir(parents=True, exist_ok=True)
        train_tokenizer().save(str(path))
    return Tokenizer.from_file(str(path))


def train(options):
    encoder, run = PromptEncoder(tokenizer_of(options.work)), Run(options.work, start=options.start)
    for number, (stage, minutes) in enumerate(zip(options.stages.split(","), map(float, options.minutes.split(",")), strict=True)):
        seed = options.seed + number
        if stage == "vision":
            train_vision(run, minutes, seed, options.text_share)
        elif stage == "language":
            train_language(run, encoder, minutes, seed, options.overview_share)
        elif stage == "joint":
            train_jointly(run, encoder, minutes, seed, options.align, options.muon_lr, options.adam_lr, options.decay)
        else:
            raise SystemExit(f"--stages: '{stage}' is none of vision, language, joint")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)

    command = commands.add_parser("train", help="train, or go on training")
    command.add_argument("--work", type=Path, required=True, help="folder of the checkpoint, the tokenizer and the log")
    command.add_argument("--start", type=Path, help="exported model to go on from, where the folder has no checkpoint")
    command.add_argument("--stages", default="vision,language,joint")
    command.add_argument("--minutes", default="50,40,60", help="of each stage")
    command.add_argument("--seed", type=int, default=100)
    command.add_argument("--threads", type=int, default=os.cpu_count())
    command.add_argument("--text-share", type=float, default=0.25, help="vision: scenes with printed text")
    command.add_argument("--overview-share", type=float, default=0.75, help="language: batches without the crops")
    command.add_argument("--align", action=argparse.BooleanOptionalAction, default=True, help="joint: fit the connector first")
    command.add_argument("--muon-lr", type=float, default=1.5e-3, help="joint")
    command.add_argument("--adam-lr", type=float, default=1.5e-3, help="joint")
    command.add_argument("--decay", type=float, default=0.5, help="joint: share of the time that the decay takes")

    command = commands.add_parser("export", help="write the hub layout")
    command.add_argument("--work", type=Path, required=True)
    command.add_argument("--out", type=Path, default=MODEL)

    command = commands.add_parser("eval", help="write held-out scenes and questions")
    command.add_argument("--export", type=Path, required=True, metavar="DIR")
    command.add_argument("--scenes", type=int, default=500)

    command = commands.add_parser("answer", help="answer a questions.jsonl with transformers")
    command.add_argument("questions", type=Path)
    command.add_argument("answers", type=Path)
    command.add_argument("--model", type=Path, default=MODEL)
    command.add_argument("--library", type=Path, help="libsmolvlm.so, to answer in place of transformers")
    command.add_argument("--backend", default="auto", help="of the library")
    command.add_argument("--dtype", default="auto", help="of the library")

    command = commands.add_parser("score", help="score JSON-lines files with 'expected' and 'answer'")
    command.add_argument("answers", type=Path, nargs="+")

    command = commands.add_parser("report", help="write the model card")
    command.add_argument("reference", type=Path, help="answers of transformers")
    command.add_argument("library", nargs="+", metavar="NAME=LIBRARY", help="answers of the library, and what they are called")
    command.add_argument("--work", type=Path, required=True)
    command.add_argument("--history", default="", help="a paragraph on this training run")

    command = commands.add_parser("picture", help="write the test image")
    command.add_argument("number", type=int, help="of a held-out scene")
    return parser.parse_args()


def main():
    options = arguments()
    cv2.setNumThreads(1)
    if options.command == "train":
        torch.set_num_threads(options.threads)
        train(options)
    elif options.command == "export":
        run = Run(options.work)
        export(run.model, run.config, tokenizer_of(options.work), options.out)
        run.save_heads()
    elif options.command == "eval":
        evaluate.export_scenes(options.export, options.scenes)
    elif options.command == "answer":
        if options.library:
            library = Library(options.library, options.model, options.backend, options.dtype)
            answer_questions(library, options.questions, options.answers)
        else:
            evaluate.answer_with_reference(options.model, options.questions, options.answers)
    elif options.command == "report":
        run = Run(options.work)
        library = {name: Path(path) for name, path in (entry.split("=", 1) for entry in options.library)}
        write_report(MODEL, run.model, run.config, options.reference, library, options.history)
    elif options.command == "picture":
        Image.fromarray(evaluate.held_out_scene(options.number)[1]).save(MODEL / "test_image.jpg", quality=92)
    else:
        print(evaluate.table(*((path.stem, evaluate.read_lines(path)) for path in options.answers)))


if __name__ == "__main__":
    main()
