#!/usr/bin/env python3
"""What each precision keeps of f32 on real weights: our engines and their peers, on the same weights, text and questions.

    quality.py                                       everything, or `make quality`, which installs what it needs
    quality.py --quick                               an eighth of the text, and ten questions
    quality.py --rows candle,q8_0 --checkpoints plain

The reference is Candle's f32 of the same checkpoint, which golden tests hold to transformers. Every row is given the same ids: windows of
prose a token at a time (`steps`), beginnings of them at once (`prompts`), and questions that it answers greedily. See weights.py and vit.py
for what the checkpoints are and text.py for the prose. Candle's vision looks at two pictures. Writes JSON, and prints tables in Markdown.
"""

import argparse
import json
import platform
import subprocess
import sys
import time
from pathlib import Path

BENCHES = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(BENCHES), str(BENCHES.parent / "tools")]

import matplotlib
import text
import vit
import weights
from common import LLAMACPP_PROGRAM, LLAMACPP_VERSION, ROOT, make_gguf, make_llamacpp, run
from engines import machine
from tokenizers import Tokenizer

CANDLE, ONNX, LLAMACPP = ("bf16", "int8", "int4"), ("int8", "q4"), ("f16", "q8_0", "q4_0", "q4_1", "q4_k_m")
ROWS = [*(f"candle {p}" for p in CANDLE), *(f"onnx {p}" for p in ONNX), *(f"llama.cpp {k}" for k in LLAMACPP)]
CHECKPOINTS = (*weights.CHECKPOINTS, "vit")
PICTURES = [Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg", ROOT / "models" / "demo" / "test_image.jpg"]
PROMPTS, NEW_TOKENS, CONTEXT = list(range(20, text.WINDOW // 2, 20)), 64, 1024


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="", help=f"parts of the names of those to run, with commas between, of {', '.join(ROWS)}")
    parser.add_argument("--checkpoints", default=",".join(CHECKPOINTS), help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, default=weights.FOLDER / "quality.json", help="default: %(default)s")
    options = parser.parse_args()
    options.rows = [row for row in ROWS if any(part in row for part in options.rows.split(","))]
    options.checkpoints = options.checkpoints.split(",")
    for name in options.checkpoints:
        if name not in CHECKPOINTS:
            parser.error(f"--checkpoints: '{name}' is none of {', '.join(CHECKPOINTS)}")
    if not options.rows:
        parser.error(f"--rows: none of {', '.join(ROWS)}")
    return options


def write_text(folder, quick):
    """The file that says what all of them are given."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    windows, questions = text.windows(tokenizer), text.prompts(tokenizer)
    if quick:
        windows, questions = windows[::8], questions[::5]
    ends = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    given = {"windows": windows, "prompts": PROMPTS, "questions": questions, "new_tokens": NEW_TOKENS, "ends": ends}
    path = weights.FOLDER / "text.json"
    path.write_text(json.dumps(given))
    return path, tokenizer


def export(folder, rows):
    """The graphs that rows of ONNX Runtime need."""
    wanted = [row.split(" ")[1] for row in rows if row.startswith("onnx")]
    missing = [precision for precision in wanted if not (folder / "onnx" / f"decoder_model_merged_{precision}.onnx").exists()]
    if missing:
        run(sys.executable, ROOT / "tools" / "export_onnx.py", folder, "--precisions", ",".join(missing))


def subject(folder, row, threads):
    """The row as the program knows it."""
    engine, precision = row.split(" ")
    if engine != "llama.cpp":
        return row
    command = [LLAMACPP_PROGRAM, "logits", folder / "gguf" / f"model-{precision}.gguf", threads, CONTEXT]
    return f"peer {row}=" + " ".join(map(str, command))


def measure(folder, given, options):
    export(folder, options.rows)
    kinds = [row.split(" ")[1] for row in options.rows if row.startswith("llama.cpp")]
    if kinds:
        make_gguf(folder, make_llamacpp(), [kind for kind in kinds if kind != "f16"])
    return ask(folder, [subject(folder, row, options.threads) for row in options.rows], "--text", given, "--threads", options.threads)


def look(options):
    """What becomes of pictures after so many layers."""
    rows = [row for row in options.rows if row.startswith("candle") and row != "candle int4"]  # whose vision is int8's
    pictures = [word for picture in PICTURES for word in ("--picture", picture)]
    return {depth: ask(vit.make(depth), rows, *pictures) for depth in vit.DEPTHS} if rows else {}


def ask(folder, subjects, *words):
    """What the program says."""
    out = weights.FOLDER / f"{folder.name}.json"
    named = (word for subject in subjects for word in ("--subject", subject))
    run("cargo", "bench", "--locked", "--bench", "quality", "--", folder, out, *words, *named)
    return json.loads(out.read_text())


HEAD = "| | KL of steps | 99 % below | top-1 kept | perplexity times | KL of prompts | top-1 kept | answers equal | f32's own choice | regret, nats |"


def table(found):
    print(HEAD + "\n|---" + "|---:" * 9 + "|")
    for row in found["rows"]:
        steps, prompts, answers = row["steps"], row["prompts"], row["answers"]
        cells = [
            row["name"], f"{steps['kl_mean']:.5f}", f"{steps['kl_p99']:.4f}", f"{steps['top1_kept']:.4f}", f"{steps['perplexity_times']:.4f}",
            f"{prompts['kl_mean']:.5f}", f"{prompts['top1_kept']:.3f}", f"{answers['equal']} of {answers['all']}",
            f"{answers['references_choice']:.4f}", f"{answers['regret']:.5f}",
        ]  # fmt: skip
        print("| " + " | ".join(cells) + " |")
    for line in found["missing"]:
        print(f"\nNot run: {line}")


def vision_table(found):
    head = ("relative error", "largest", "cosine", "smallest")
    print("| | " + " | ".join(f"{of}: {what}" for of in ("features", "image rows") for what in head) + " |\n|---" + "|---:" * 8 + "|")
    for depth, row in ((depth, row) for depth, of_depth in found.items() for row in of_depth["rows"]):
        cells = [f"{row[of][what]:.5f}" for of in ("features", "image_rows") for what in ("error_mean", "error_max", "cosine_mean", "cosine_min")]
        print(f"| {row['name']}, {depth} layers | " + " | ".join(cells) + " |")


def main():
    options = arguments()
    start = time.time()
    folders = {name: weights.make(name) for name in options.checkpoints if name != "vit"}
    found = {
        "machine": machine(), "threads": options.threads, "python": platform.python_version(), "llama.cpp": f"of llama-cpp-python {LLAMACPP_VERSION}",
        "commit": subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True).stdout.strip(),
        "checkpoints": {},
    }  # fmt: skip
    for name, folder in folders.items():
        given, tokenizer = write_text(folder, options.quick)
        found["checkpoints"][name] = measure(folder, given, options)
    if "vit" in options.checkpoints:
        found["vit"] = look(options)
    found["seconds"] = time.time() - start
    options.out.write_text(json.dumps(found, indent=1) + "\n")
    for name, of in found["checkpoints"].items():
        steps = of["rows"][0]["steps"]["positions"] if of["rows"] else 0
        print(f"\n{name}: f32's perplexity {of['perplexity']:.2f}; {steps} steps\n")
        table(of)
        print("\nf32's first answers:", *(json.dumps(tokenizer.decode(ids)) for ids in of["answers"][:3]), sep="\n  ")
    if "vit" in found:
        print(f"\nvit: {len(PICTURES)} pictures\n")
        vision_table(found["vit"])
    print(f"\n{found['machine']['cpu']}, {options.threads} threads, prose of Python {found['python']}; {options.out}, {found['seconds'] / 60:.0f} minutes")


if __name__ == "__main__":
    main()
