"""What the reference computes at every stage, and the prompts it renders."""

import hashlib
import json
from dataclasses import asdict, dataclass

import numpy as np
import torch
from PIL import Image
from safetensors.numpy import save_file
from transformers import AutoProcessor, AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil
from transformers.models.smolvlm.processing_smolvlm import get_image_prompt_string
from transformers.utils.chat_template_utils import render_jinja_template

from .checkpoints import FAMILIES
from .pictures import picture

GREEDY_TOKENS = 24
IMAGE_PROCESSORS = {"idefics3": Idefics3ImageProcessorPil, "smolvlm": SmolVLMImageProcessorPil}


@dataclass
class Case:
    """One question about one picture."""

    name: str
    kind: str
    width: int
    height: int
    question: str
    longest_edge: int | None = None  # None: the checkpoint's own
    split: bool = True


def image_processor(model_type, folder):
    flat, nested = folder / "preprocessor_config.json", folder / "processor_config.json"
    settings = json.loads(flat.read_text()) if flat.exists() else json.loads(nested.read_text())["image_processor"]
    return IMAGE_PROCESSORS[model_type](**settings)


def budget(longest_edge):
    """The processor's argument for a per-call tile budget; none: the checkpoint's own."""
    return {"size": {"longest_edge": longest_edge}} if longest_edge else {}


def cut(processor, image, longest_edge=None, split=True):
    """The reference's tiles before rescaling, u8 [n, T, T, 3], then rows and columns."""
    raw = processor(
        image,
        **budget(longest_edge),
        do_image_splitting=split,
        do_rescale=False,
        do_normalize=False,
        do_pad=False,
        return_row_col_info=True,
    )
    tiles = np.stack([np.moveaxis(t, 0, -1) for t in raw["pixel_values"][0]])
    if tiles.dtype != np.uint8:
        raise TypeError(f"tiles are {tiles.dtype}, uint8 wanted")
    return tiles, int(raw["rows"][0][0]), int(raw["cols"][0][0])


def render(template, messages):
    (text,), _ = render_jinja_template([messages], chat_template=template, add_generation_prompt=True)
    return text


def expand(text, grids, image_seq_len):
    """Replaces each `<image>` as the reference's processors do (both have one wording)."""
    parts = text.split("<image>")
    if len(parts) != len(grids) + 1:
        raise ValueError(f"{len(parts) - 1} images in the text, {len(grids)} given")
    expanded = parts[0]
    for (rows, cols), part in zip(grids, parts[1:]):
        expanded += get_image_prompt_string(
            rows, cols, image_seq_len, "<fake_token_around_image>", "<image>", "<global-img>"
        )
        expanded += part
    return expanded


def _spread(count, limit):
    """At most `limit` indices of 0..count, evenly spread, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, limit)).round().astype(np.int64))


def _user(*contents):
    return {"role": "user", "content": [c if isinstance(c, dict) else {"type": "text", "text": c} for c in contents]}


def _says(role, text):
    return {"role": role, "content": [{"type": "text", "text": text}]}


IMAGE = {"type": "image"}
# The grids are (rows, cols) of each image in turn; (0, 0) is one frame.
PROMPTS = [
    ([_user("What is the answer?")], []),
    ([_user(IMAGE, "Can you describe this image?")], [(0, 0)]),
    ([_user(IMAGE, "Can you describe this image?")], [(3, 4)]),
    ([_user("Look: ", IMAGE, "\n\nand say what it shows.\n")], [(1, 2)]),
    ([_says("system", "Answer in one word."), _user(IMAGE, "Is the door open?")], [(2, 1)]),
    ([_user(IMAGE, IMAGE, "Describe the first picture, then the second one.")], [(0, 0), (2, 2)]),
    ([_user(IMAGE, " versus ", IMAGE, "\nWhich?")], [(1, 3), (0, 0)]),
    (
        [
            _says("system", "You are a robot.\n\n"),
            _user(IMAGE, "How many people?"),
            _says("assistant", "Two."),
            _user("And cats?"),
        ],
        [(2, 2)],
    ),
    (
        [
            _user(IMAGE, "What is it?"),
            _says("assistant", "A sign."),
            _user("And here? ", IMAGE),
        ],
        [(0, 0), (1, 2)],
    ),
    ([_user(IMAGE, "Größe? ¿Qué hay? 図には何がありますか 👩‍🚀🎉 naïve\tx 12345")], [(0, 0)]),
    ([_user("  spaces   and\n\n\nnewlines \n"), _says("assistant", ""), _user("{{ braces }} {% if %}")], []),
]


def write_prompts(spec, folder, tokenizer):
    entries = []
    for messages, grids in PROMPTS:
        rendered = render(spec.template, messages)
        expanded = expand(rendered, grids, spec.image_seq_len)
        ids = tokenizer(expanded)["input_ids"]
        entries.append(
            {"messages": messages, "grids": grids, "rendered": rendered, "expanded": expanded, "ids": ids}
        )
    (folder / "prompts.json").write_text(json.dumps(entries, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


@torch.inference_mode()
def _run_case(case, spec, folder, model, processor, tokenizer, arrays):
    image = Image.fromarray(picture(case.kind, case.width, case.height))
    image_file = f"{case.name}.png"
    image.save(folder / image_file, optimize=True)
    tiles, rows, cols = cut(processor, image, case.longest_edge, case.split)
    pixels = processor(image, **budget(case.longest_edge), do_image_splitting=case.split, return_tensors="pt")
    if tuple(pixels["pixel_values"].shape[:2]) != (1, len(tiles)):
        raise ValueError(f"{case.name}: {tuple(pixels['pixel_values'].shape)} pixel values for {len(tiles)} tiles")

    rendered = render(spec.template, [_user(IMAGE, case.question)])
    expanded = expand(rendered, [(rows, cols)], spec.image_seq_len)
    ids = tokenizer(expanded, return_tensors="pt")["input_ids"]
    prompt_len = ids.shape[1]
    if spec.saved:
        whole = AutoProcessor.from_pretrained(folder)
        text = whole.apply_chat_template([_user(IMAGE, case.question)], add_generation_prompt=True)
        switches = {**budget(case.longest_edge), "do_image_splitting": case.split}
        if whole(text=text, images=[image], return_tensors="pt", **switches)["input_ids"].tolist() != ids.tolist():
            raise ValueError(f"{case.name}: the saved processor makes another prompt")

    features = model.model.get_image_features(**pixels, return_dict=True)
    vision, image_rows = features.last_hidden_state, torch.cat(features.pooler_output)
    everything = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        **pixels,
    )
    greedy = everything[0, prompt_len:]
    logits = model(input_ids=everything, attention_mask=torch.ones_like(everything), **pixels).logits[0]
    answers = logits[prompt_len - 1 : -1]
    if not torch.equal(answers.argmax(-1), greedy) or len(greedy) != GREEDY_TOKENS:
        raise ValueError(f"{case.name}: the teacher-forced run disagrees with the greedy one")

    top = answers.topk(2).values
    n_tiles, n_patches, _ = vision.shape
    picks = {
        "vision_tiles": _spread(n_tiles, 3),
        "vision_patches": _spread(n_patches, 96),
        "image_rows_index": _spread(len(image_rows), 160),
        "logits_index": np.unique(np.concatenate([_spread(prompt_len, 48), np.arange(prompt_len - 1, len(logits))])),
    }
    stored = {
        "tile_lines": np.concatenate([tiles[i][_spread(spec.tile_size, 3)] for i in (0, -1)]),
        "input_ids": ids[0].numpy().astype(np.int64),
        "greedy_ids": greedy.numpy().astype(np.int64),
        "vision": vision[picks["vision_tiles"]][:, picks["vision_patches"]].numpy(),
        "image_rows": image_rows[picks["image_rows_index"]].numpy(),
        "logits": logits[picks["logits_index"]].numpy(),
        **picks,
    }
    arrays.update({f"{case.name}.{key}": np.ascontiguousarray(value) for key, value in stored.items()})
    # What is saved names LlamaConfig's default, 2, which is <|im_end|> here.
    stop_tokens = ["<|im_end|>"] if spec.eos_list or spec.saved else []
    stop_ids = {tokenizer.convert_tokens_to_ids(t) for t in [*stop_tokens, spec.end]}
    stops = [i for i, token in enumerate(greedy.tolist()) if token in stop_ids]
    return asdict(case) | {
        "longest_edge": case.longest_edge or spec.longest_edge,
        "image": image_file,
        "tile_size": spec.tile_size,
        "tile_count": len(tiles),
        "rows": rows,
        "cols": cols,
        "tiles_sha256": hashlib.sha256(tiles.tobytes()).hexdigest(),
        "tile_lines": _spread(spec.tile_size, 3).tolist(),
        "rendered": rendered,
        "expanded": expanded,
        "prompt_tokens": prompt_len,
        "image_tokens": len(image_rows),
        "vision_shape": list(vision.shape),
        "image_rows_shape": list(image_rows.shape),
        "logits_shape": list(logits.shape),
        "logits_std": float(logits.std()),
        "greedy_ids": greedy.tolist(),
        "greedy_text": tokenizer.decode(greedy, skip_special_tokens=True, clean_up_tokenization_spaces=False),
        "greedy_stop": stops[0] if stops else None,
        "greedy_min_gap": float((top[:, 0] - top[:, 1]).min()),
    }


def write_golden(spec, folder):
    """Loads the checkpoint as anyone would and stores what the reference makes of its cases."""
    model, info = FAMILIES[spec.model_type][1].from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    if any(info.get(key) for key in ("missing_keys", "unexpected_keys", "mismatched_keys")):
        raise ValueError(f"{spec.name}: {info}")
    model.eval()
    # Without an end token the continuation goes on past an end-of-utterance.
    model.generation_config = GenerationConfig(do_sample=False, max_new_tokens=GREEDY_TOKENS, pad_token_id=0)
    if spec.saved:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    else:
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    processor = image_processor(spec.model_type, folder)
    write_prompts(spec, folder, tokenizer)
    arrays = {}
    cases = [_run_case(case, spec, folder, model, processor, tokenizer, arrays) for case in spec.cases]
    save_file(arrays, folder / "golden.safetensors")
    text, vision = model.config.text_config, model.config.vision_config
    golden = {
        "about": spec.about,
        "stored_dtype": str(spec.dtype).removeprefix("torch."),
        "template_home": spec.template_home,
        "resolved": {
            "scale_factor": model.config.scale_factor,
            "tied": model.config.tie_word_embeddings,
            "vision": {
                key: getattr(vision, key)
                for key in (
                    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                    "image_size", "patch_size", "hidden_act", "layer_norm_eps",
                )
            },
            "text": {
                key: getattr(text, key)
                for key in (
                    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                    "num_key_value_heads", "head_dim", "hidden_act", "rms_norm_eps", "rope_parameters",
                )
            },
        },
        "cases": cases,
    }
    (folder / "golden.json").write_text(json.dumps(golden, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return cases
