#!/usr/bin/env python3
"""What each precision keeps of f32 on real weights: our engines and their peers, on the same weights, text and questions.

    quality.py                                       everything, or `make quality`, which installs what it needs
    quality.py --quick                               an eighth of the text, and ten questions at most
    quality.py --whole                               all rows on both checkpoints, with all of the text (hours)
    quality.py --rows candle,q8_0 --checkpoints plain
    quality.py --keep                                only the rows that --out lacks
    quality.py --keep --rows candle                  those rows anew, beside the others that --out has

The reference is Candle's f32 of the same checkpoint, which golden tests hold to transformers. Every row is given the same ids: windows of
prose a token at a time (`steps`), beginnings of them at once (`prompts`), and questions that it answers greedily. See weights.py and vit.py
for what the checkpoints are and text.py for the prose. Candle's vision looks at two pictures. Writes JSON, and prints tables in Markdown.

Keys and values are judged where there are many: the last tokens of windows of --context tokens, in 8 and in 16 bits, beside f32 and beside
each other.

Our own engine and llama.cpp's q8_0, which it is to be as good as, read all of the text; others a part that suits their speed (SHARES), and
only on the dithered weights, which favour nobody's grid, unless --rows or --checkpoints names them. Each row has the commit, the day and the processor that it
is of, and digests of its text and checkpoint: --keep leaves out what has others.
"""

import argparse
import hashlib
import json
import platform
import subprocess
import sys
import time
from pathlib import Path

BENCHES = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(BENCHES), str(BENCHES.parent / "tools")]

import matplotlib
import sizes
import text
import vit
import weights
from common import LLAMACPP_PROGRAM, LLAMACPP_VERSION, ROOT, make_gguf, make_llamacpp, make_openvino, run, stale
from engines import machine
from tokenizers import Tokenizer

CANDLE, ONNX, LLAMACPP = ("bf16", "int8", "int4"), ("int8", "q4"), ("f16", "q8_0", "q4_0", "q4_1", "q4_k_m")
PEERS = ("transformers bf16", "torchao int8", "openvino bf16", "openvino int8", "mistral.rs q8_0", "mistral.rs q4k")
ROWS = [*(f"candle {p}" for p in CANDLE), *(f"onnx {p}" for p in ONNX), *(f"llama.cpp {k}" for k in LLAMACPP), *PEERS]
CHECKPOINTS = (*weights.CHECKPOINTS, "vit")
PICTURES = [Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg", ROOT / "models" / "demo" / "test_image.jpg"]
# Windows of text and questions by how a row's name begins.
WHOLE = (text.WINDOWS, len(text.QUESTIONS))
SHARES = {"candle": WHOLE, "llama.cpp q8_0": WHOLE, "llama.cpp q4": (8, 10), "mistral.rs": (1, 10), "": (4, 10)}
PROMPTS, NEW_TOKENS, CONTEXT = list(range(20, text.WINDOW // 2, 20)), 64, 1024
# Long windows, and how many of a one's tokens are compared, as steps after all others at once.
LONG_WINDOWS, LONG_STEPS = 4, 512


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="", help=f"parts of the names of those to run, with commas between, of {', '.join(ROWS)}")
    parser.add_argument("--checkpoints", default="", help=f"default: {','.join(CHECKPOINTS)}")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--context", type=int, default=4096, metavar="N", help="tokens of a long window, 0: none; default: %(default)s")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--keep", action="store_true", help="rows that --out has of the same text and checkpoints")
    parser.add_argument("--prepare", action="store_true", help="makes what the rows need, and measures nothing")
    parser.add_argument("--out", type=Path, help="default: build/quality/quality.json; with --quick, quality-quick.json")
    options = parser.parse_args()
    options.out = options.out or weights.FOLDER / ("quality-quick.json" if options.quick else "quality.json")
    options.asked = bool(options.rows)
    options.named = bool(options.rows or options.checkpoints) or options.whole
    options.rows = [row for row in ROWS if any(part in row for part in options.rows.split(","))]
    options.checkpoints = options.checkpoints.split(",") if options.checkpoints else CHECKPOINTS
    for name in options.checkpoints:
        if name not in CHECKPOINTS:
            parser.error(f"--checkpoints: '{name}' is none of {', '.join(CHECKPOINTS)}")
    if options.context and not LONG_STEPS < options.context <= 8192:
        parser.error(f"--context: {options.context} given, 0 or {LONG_STEPS + 1} to 8192 accepted")
    if not options.rows:
        parser.error(f"--rows: none of {', '.join(ROWS)}")
    return options


def share(row, options):
    """Windows and questions of a row."""
    windows, questions = WHOLE if options.whole else next(of for name, of in SHARES.items() if row.startswith(name))
    return (min(windows, 2), min(questions, 10)) if options.quick else (windows, questions)


def spaced(items, count):
    """So many of them, evenly spaced."""
    return items[:: len(items) // count][:count]


def write_text(folder, windows, questions):
    """The file that says what rows of a share are given."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ends = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    given = {
        "windows": spaced(text.windows(tokenizer), windows), "prompts": PROMPTS, "questions": spaced(text.prompts(tokenizer), questions),
        "new_tokens": NEW_TOKENS, "ends": ends,
    }  # fmt: skip
    path = weights.FOLDER / f"text-{windows}-{questions}.json"
    path.write_text(json.dumps(given))
    return path


def export(folder, rows):
    """The graphs that rows of ONNX Runtime need."""
    wanted = {row.split(" ")[1] for row in rows if row.startswith("onnx")}
    wanted |= {"q4"} if any(row.startswith("openvino") for row in rows) else set()  # whose table of embeddings is in f32
    missing = [precision for precision in sorted(wanted) if stale(folder / "onnx" / f"decoder_model_merged_{precision}.onnx")]
    if missing:
        run(sys.executable, ROOT / "tools" / "export_onnx.py", folder, "--precisions", ",".join(missing))


def subject(folder, row, threads):
    """The row as the program knows it."""
    engine, precision = row.split(" ")
    if engine in ("candle", "onnx"):
        return row
    if engine == "llama.cpp":
        command = [LLAMACPP_PROGRAM, "logits", folder / "gguf" / f"model-{precision}.gguf", threads, CONTEXT]
    else:
        command = [sys.executable, Path(__file__).with_name("peers.py"), engine, precision, folder, threads]
    return f"peer {row}=" + " ".join(map(str, command))


def digest(*paths):
    whole = hashlib.sha256()
    for path in paths:
        whole.update(hashlib.sha256(path.read_bytes()).digest())
    return whole.hexdigest()[:16]


def provenance(threads):
    """What a row is of."""
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    return {"commit": commit, "day": time.strftime("%Y-%m-%d"), "cpu": machine()["cpu"], "threads": threads}


def wanted(name, options):
    """Rows of a checkpoint."""
    return [row for row in options.rows if options.named or name == "dithered" or share(row, options) == share("candle", options)]


def together(row, options):
    """Peers of Python's have threads that wait busily, and would slow each other down: an engine at a time."""
    engine = row.split(" ")[0]
    return share(row, options), "" if engine in ("candle", "onnx", "llama.cpp") else engine


def measure(folder, options, known, save):
    """All rows of a checkpoint beside those that are known; saves them whenever there are more."""
    shares = dict.fromkeys(share(row, options) for row in ROWS)
    texts = {of: write_text(folder, *of) for of in shares}
    text_digests = {of: digest(path) for of, path in texts.items()}
    checkpoint = digest(*(folder / file for file in ("config.json", "model.safetensors", "tokenizer.json")))
    found = known if known.get("checkpoint") == checkpoint else {"checkpoint": checkpoint, "rows": [], "answers": []}
    found["rows"] = [row for row in found["rows"] if row["text"] == text_digests[share(row["name"], options)]]
    found["missing"] = []
    kept = {row["name"] for row in found["rows"]}
    rows = [row for row in wanted(folder.name, options) if options.asked or row not in kept]
    prepare(folder, rows)
    for group in dict.fromkeys(together(row, options) for row in rows):
        names = [row for row in rows if together(row, options) == group]
        given = texts[group[0]]
        some = ask(folder, [subject(folder, row, options.threads) for row in names], "--text", given, "--threads", options.threads)
        for row in some["rows"]:
            row |= {"text": text_digests[group[0]], "of": provenance(options.threads)}
            row["bytes"] = row["bytes"] or sizes.of(folder, row["name"])
        replaced = {row["name"] for row in some["rows"]}
        found["rows"] = sorted([row for row in found["rows"] if row["name"] not in replaced] + some["rows"], key=lambda row: ROWS.index(row["name"]))
        found["missing"] += some["missing"]
        if len(some["answers"]) >= len(found["answers"]):  # what is known of f32 itself is of the largest share
            found |= {key: some[key] for key in ("reference", "perplexity", "answers")}
        save(found)
    return found


def prepare(folder, rows):
    """What rows of others need beside the checkpoint."""
    export(folder, rows)
    kinds = [row.split(" ")[1] for row in rows if row.startswith("llama.cpp")]
    if kinds:
        make_gguf(folder, make_llamacpp(), [kind for kind in kinds if kind != "f16"])
    for row in rows:
        if row.startswith("openvino"):
            make_openvino(folder, row.split(" ")[1], vision=False)


def keep(folder, options):
    """What keys and values in 8 and in 16 bits keep of f32, and what 8 bits keep of 16."""
    precisions = [precision for precision in CANDLE if f"candle {precision}" in options.rows]
    if not options.context or not precisions:
        return []
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    windows = text.long_windows(tokenizer, options.context, 1 if options.quick else LONG_WINDOWS)
    given = {"windows": windows, "given": options.context - LONG_STEPS, "prompts": [], "questions": [], "new_tokens": 0, "ends": []}
    path = weights.FOLDER / f"text-long-{options.context}.json"
    path.write_text(json.dumps(given))
    pairs = {"candle f32": [f"candle {precision} {kept}" for precision in precisions for kept in ("int8", "bf16")]}
    pairs |= {f"candle {precision} bf16": [f"candle {precision} int8"] for precision in precisions}
    words = ("--text", path, "--threads", options.threads, "--reference")
    return [ask(folder, subjects, *words, reference) for reference, subjects in pairs.items()]


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


HEAD = "| | MB a step | steps | KL of steps | 99 % below | top-1 kept | perplexity times | KL of prompts | top-1 kept | answers equal | f32's own choice | regret, nats |"


def table(found):
    print(HEAD + "\n|---" + "|---:" * 11 + "|")
    for row in found["rows"]:
        steps, prompts, answers = row["steps"], row["prompts"], row["answers"]
        cells = [
            row["name"], "-" if row["bytes"] is None else f"{row['bytes'] / 1e6:.1f}", f"{steps['positions']}", f"{steps['kl_mean']:.5f}", f"{steps['kl_p99']:.4f}", f"{steps['top1_kept']:.4f}", f"{steps['perplexity_times']:.4f}",
            f"{prompts['kl_mean']:.5f}", f"{prompts['top1_kept']:.3f}", f"{answers['equal']} of {answers['all']}",
            f"{answers['references_choice']:.4f}", f"{answers['regret']:.5f}",
        ]  # fmt: skip
        print("| " + " | ".join(cells) + " |")
    for line in found["missing"]:
        print(f"\nNot run: {line}")


def kept_table(found, context):
    print(f"\nAt {context} tokens, by the precision of weights and of keys and values:\n")
    print("| | beside | steps | KL | 99 % below | top-1 kept |\n|---|---" + "|---:" * 4 + "|")
    for row, reference in ((row, of["reference"]) for of in found for row in of["rows"]):
        steps = row["steps"]
        cells = [row["name"], reference, f"{steps['positions']}", f"{steps['kl_mean']:.5f}", f"{steps['kl_p99']:.4f}", f"{steps['top1_kept']:.4f}"]
        print("| " + " | ".join(cells) + " |")


def vision_table(found):
    head = ("relative error", "largest", "cosine", "smallest")
    print("| | " + " | ".join(f"{of}: {what}" for of in ("features", "image rows") for what in head) + " |\n|---" + "|---:" * 8 + "|")
    for depth, row in ((depth, row) for depth, of_depth in found.items() for row in of_depth["rows"]):
        cells = [f"{row[of][what]:.5f}" for of in ("features", "image_rows") for what in ("error_mean", "error_max", "cosine_mean", "cosine_min")]
        print(f"| {row['name']}, {depth} layers | " + " | ".join(cells) + " |")


def origins(found):
    """Where rows come from, a line for each run."""
    rows = {}
    for name, of in found["checkpoints"].items():
        for row in of["rows"]:
            rows.setdefault(tuple(row["of"].items()), []).append(f"{row['name']} ({name})")
    for of, names in rows.items():
        made = dict(of)
        print(f"{made['day']}, {made['commit']}, {made['cpu']}, {made['threads']} threads: {', '.join(names)}")


def main():
    options = arguments()
    start = time.time()
    folders = {name: weights.make(name) for name in options.checkpoints if name != "vit"}
    if options.prepare:
        for name, folder in folders.items():
            prepare(folder, wanted(name, options))
        return
    known = json.loads(options.out.read_text()) if options.keep and options.out.exists() else {"checkpoints": {}}
    found = known | {"machine": machine(), "python": platform.python_version(), "llama.cpp": f"of llama-cpp-python {LLAMACPP_VERSION}"}

    def save():
        options.out.write_text(json.dumps(found, indent=1) + "\n")

    for name, folder in folders.items():

        def save_checkpoint(of, name=name):
            found["checkpoints"][name] = of
            save()

        before = found["checkpoints"].get(name, {})
        of = measure(folder, options, before, save_checkpoint)
        of["kept"] = keep(folder, options) or before.get("kept", [])
        save_checkpoint(of)
    if "vit" in options.checkpoints and (options.asked or "vit" not in known):
        found["vit"] = look(options) or found.get("vit", {})
    found["seconds"] = time.time() - start
    save()
    for name, of in ((name, of) for name, of in found["checkpoints"].items() if of["rows"]):
        tokenizer = Tokenizer.from_file(str(weights.FOLDER / name / "tokenizer.json"))
        print(f"\n{name}: f32's perplexity {of['perplexity']:.2f}\n")
        table(of)
        if of.get("kept"):
            kept_table(of["kept"], options.context)
        print("\nf32's first answers:", *(json.dumps(tokenizer.decode(ids)) for ids in of["answers"][:3]), sep="\n  ")
    if found.get("vit"):
        print(f"\nvit: {len(PICTURES)} pictures\n")
        vision_table(found["vit"])
    print()
    origins(found)
    print(f"prose of Python {found['python']}; {options.out}, {found['seconds'] / 60:.0f} minutes")


if __name__ == "__main__":
    main()
