"""The small random checkpoints: their geometries, their weights and the files of a hub directory."""

import json
import math
from dataclasses import dataclass, field

import torch
import transformers
from safetensors.torch import save_file
from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    PreTrainedTokenizerFast,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)

from .tokens import make_tokenizer

IMAGE_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}"
    "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
VIDEO_TEMPLATE = IMAGE_TEMPLATE.replace(
    "{{ '<image>' }}{% endif %}", "{{ '<image>' }}{% elif line['type'] == 'video' %}{{ '<video>' }}{% endif %}"
)
FAMILIES = {
    "idefics3": (Idefics3Config, Idefics3ForConditionalGeneration, "Idefics3"),
    "smolvlm": (SmolVLMConfig, SmolVLMForConditionalGeneration, "SmolVLM"),
}


@dataclass
class Checkpoint:
    """What one checkpoint is made of. Fields absent from `vision` and `text` are left to the reference's defaults."""

    name: str
    about: str
    seed: int
    model_type: str
    dtype: torch.dtype
    vision: dict
    text: dict
    tile_size: int
    longest_edge: int
    image_seq_len: int
    cases: list  # of reference.Case
    top: dict = field(default_factory=dict)
    v1_tokens: bool = False
    template_home: str = "chat_template.jinja"  # or chat_template.json, tokenizer_config.json
    eos_list: bool = True
    shards: int = 1
    tokens: int | None = None  # of the tokenizer; None: as many as the embedding table has rows
    saved: bool = False  # by transformers' own save_pretrained, with nothing added by hand
    end: str = "<end_of_utterance>"  # the token that ends a message

    @property
    def needs_torchvision(self):
        return self.saved and self.model_type == "smolvlm"

    @property
    def template(self):
        template = VIDEO_TEMPLATE if self.model_type == "smolvlm" else IMAGE_TEMPLATE
        return template.replace("<end_of_utterance>", self.end)


def _gain(name):
    """How wide a matrix's outputs spread for inputs of unit variance."""
    if "q_proj" in name or "k_proj" in name:
        return 1.6  # attention that looks at some places more than at others
    if "lm_head" in name:
        return 3.0
    return 1.0


def randomise(model, seed):
    """Weights under which every stage matters: peaked attention, unit activations, spread logits."""
    generator = torch.Generator().manual_seed(seed)
    tied = model.config.tie_word_embeddings
    for name, tensor in model.named_parameters():
        noise = torch.randn(tensor.shape, generator=generator)
        if "norm" in name:
            value = 1 + 0.2 * noise if name.endswith("weight") else 0.1 * noise
        elif name.endswith("bias"):
            value = 0.1 * noise
        elif "embed_tokens" in name:
            # A tied table is the head as well, and a head wants rows of about the head's gain in length.
            value = noise * (3.0 / math.sqrt(tensor.shape[1]) if tied else 1.0)
        elif "position_embedding" in name:
            value = 0.5 * noise
        else:
            value = noise * _gain(name) / math.sqrt(tensor[0].numel())
        tensor.data.copy_(value)


def _write_json(path, value):
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _save_weights(folder, state, shards):
    if shards == 1:
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        return
    names = sorted(state)
    weight_map = {}
    for index in range(shards):
        file = f"model-{index + 1:05}-of-{shards:05}.safetensors"
        part = {name: state[name] for name in names[index::shards]}
        weight_map |= dict.fromkeys(part, file)
        save_file(part, folder / file, metadata={"format": "pt"})
    total = sum(t.numel() * t.element_size() for t in state.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    _write_json(folder / "model.safetensors.index.json", index)


def build_saved(spec, folder):
    """Writes the directory of `spec` as whoever has trained a model does: model.save_pretrained, processor.save_pretrained."""
    config_class, model_class, family = FAMILIES[spec.model_type]
    backend = make_tokenizer(spec.text["vocab_size"], spec.v1_tokens, spec.end)
    config = config_class(
        image_token_id=backend.token_to_id("<image>"),
        text_config={"model_type": "llama", **spec.text},
        vision_config=spec.vision,
        **spec.top,
    )
    model = model_class(config)
    randomise(model, spec.seed)
    model.to(spec.dtype).save_pretrained(folder)

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|im_start|>",
        eos_token=spec.end,
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
    )
    settings = {"size": {"longest_edge": spec.longest_edge}, "max_image_size": {"longest_edge": spec.tile_size}}
    parts = [getattr(transformers, f"{family}ImageProcessor")(**settings), tokenizer]
    if spec.needs_torchvision:
        parts.append(transformers.SmolVLMVideoProcessor(**settings))
    processor = getattr(transformers, f"{family}Processor")(
        *parts, image_seq_len=spec.image_seq_len, chat_template=spec.template
    )
    processor.save_pretrained(folder)


def build(spec, folder):
    """Writes the hub directory of `spec`."""
    folder.mkdir(parents=True)
    if spec.saved:
        build_saved(spec, folder)
        return
    config_class, model_class, family = FAMILIES[spec.model_type]
    tokenizer = make_tokenizer(spec.tokens or spec.text["vocab_size"], spec.v1_tokens)
    tokenizer.save(str(folder / "tokenizer.json"))
    image_id, end_id = tokenizer.token_to_id("<image>"), tokenizer.token_to_id("<end_of_utterance>")

    dtype_name = str(spec.dtype).removeprefix("torch.")
    config = {
        "architectures": [model_class.__name__],
        "image_token_id": image_id,
        "model_type": spec.model_type,
        "pad_token_id": 128002,  # out of range in the published files too
        **spec.top,
        "text_config": {"model_type": "llama", **spec.text},
        "torch_dtype": dtype_name,
        "vision_config": {"model_type": spec.model_type if spec.model_type == "idefics3" else "smolvlm_vision"}
        | spec.vision,
    }
    _write_json(folder / "config.json", config)
    model = model_class(config_class(**json.loads(json.dumps(config))))
    randomise(model, spec.seed)
    state = {k: v.to(spec.dtype).contiguous() for k, v in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del state["lm_head.weight"]
    _save_weights(folder, state, spec.shards)

    preprocessor = {
        "do_convert_rgb": True,
        "do_image_splitting": True,
        "do_normalize": True,
        "do_pad": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_processor_type": f"{family}ImageProcessor",
        "image_std": [0.5, 0.5, 0.5],
        "max_image_size": {"longest_edge": spec.tile_size},
        "processor_class": f"{family}Processor",
        "resample": 1,
        "rescale_factor": 0.00392156862745098,
        "size": {"longest_edge": spec.longest_edge},
    }
    _write_json(folder / "preprocessor_config.json", preprocessor)
    _write_json(
        folder / "processor_config.json",
        {"image_seq_len": spec.image_seq_len, "processor_class": f"{family}Processor"},
    )
    eos = [tokenizer.token_to_id("<|im_end|>"), end_id] if spec.eos_list else end_id
    _write_json(
        folder / "generation_config.json",
        {"_from_model_config": True, "bos_token_id": 0, "eos_token_id": eos, "pad_token_id": 2},
    )
    tokenizer_config = {
        "add_prefix_space": False,
        "additional_special_tokens": ["<fake_token_around_image>", "<image>", "<end_of_utterance>"],
        "bos_token": "<|im_start|>",
        "clean_up_tokenization_spaces": False,
        "eos_token": "<end_of_utterance>",
        "model_max_length": 8192,
        "pad_token": "<|im_end|>",
        "processor_class": f"{family}Processor",
        "tokenizer_class": "GPT2Tokenizer",
        "unk_token": "<|endoftext|>",
    }
    if spec.template_home == "tokenizer_config.json":
        tokenizer_config["chat_template"] = spec.template
    elif spec.template_home == "chat_template.json":
        _write_json(folder / spec.template_home, {"chat_template": spec.template})
    else:
        (folder / spec.template_home).write_text(spec.template, encoding="utf-8")
    _write_json(folder / "tokenizer_config.json", tokenizer_config)
