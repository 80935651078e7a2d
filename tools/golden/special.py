"""What the reference's tokenizer makes of answers that hold special tokens.

special_tokens.json is a list of
    checkpoint          a folder of tests/golden, whose greedy answers these are
    renamed             its special tokens, by the names that they get in tokenizer.json: those in which Docling answers
    cases: a list of {name, kept, skipped}: the case of golden.json, and the text up to the token that ends the answer
        with special tokens, and without
"""

import json
import tempfile
from pathlib import Path

from transformers import PreTrainedTokenizerFast

RENAMED = [
    ("smolvlm2-defaults-bf16", {}),
    (
        "smolvlm2-defaults-bf16",
        {"<row_2_col_6>": "<doctag>", "<row_6_col_3>": "<otsl>", "<row_5_col_5>": "<loc_499>"},
    ),
    ("gqa-32x32-f16", {"<row_3_col_2>": "<loc_12>", "<row_5_col_4>": "<doctag>", "<row_1_col_5>": "<otsl>"}),
]


def write(file):
    """Writes `file`, beside the checkpoints, which must be there."""
    entries = []
    for checkpoint, renamed in RENAMED:
        folder = file.parent / checkpoint
        tokens = (folder / "tokenizer.json").read_text(encoding="utf-8")
        golden = json.loads((folder / "golden.json").read_text(encoding="utf-8"))
        for old, new in renamed.items():
            if new in tokens or any(old in case["expanded"] for case in golden["cases"]):
                raise ValueError(f"{checkpoint}: {old} is in a prompt, or {new} is there already")
            tokens = tokens.replace(json.dumps(old), json.dumps(new))
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / "tokenizer.json"
            path.write_text(tokens, encoding="utf-8")
            tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(path))
        cases = []
        for case in golden["cases"]:
            ids = case["greedy_ids"][: case["greedy_stop"]]
            text = [
                tokenizer.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
                for skip in (False, True)
            ]
            cases.append({"name": case["name"], "kept": text[0], "skipped": text[1]})
        entries.append({"checkpoint": checkpoint, "renamed": renamed, "cases": cases})
    file.write_text(json.dumps(entries, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return len(entries)
