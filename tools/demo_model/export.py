"""Writes the hub layout: the files that a published SmolVLM checkpoint consists of."""

import json
import shutil

import torch
from checksums import write_sums
from safetensors.torch import save_file
from transformers import Idefics3Config, PreTrainedTokenizerFast

from .tiles import LONGEST_EDGE, PATCH, SCALE_FACTOR, TILE, TOKENS
from .tokenizer import LAST_SPECIALS

# The template of the published SmolVLM checkpoints.
CHAT_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}{% if message['content'][0]['type'] == 'image' %}{{':'}}"
    "{% else %}{{': '}}{% endif %}{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
CONTEXT = 2048


def hub_config(config, tokenizer):
    ids = {name: tokenizer.token_to_id(token) for name, token in (("pad", "<|im_end|>"), ("bos", "<|im_start|>"), ("eos", "<end_of_utterance>"))}
    text = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": config.text_width,
        "intermediate_size": config.text_inner,
        "num_hidden_layers": config.text_layers,
        "num_attention_heads": config.text_heads,
        "num_key_value_heads": config.text_kv_heads,
        "head_dim": config.text_width // config.text_heads,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": config.rope_theta,
        "max_position_embeddings": CONTEXT,
        "vocab_size": config.vocab,
        "tie_word_embeddings": False,
        "pad_token_id": ids["pad"],
        "bos_token_id": ids["bos"],
        "eos_token_id": ids["eos"],
    }
    vision = {
        "model_type": "idefics3_vision",
        "hidden_size": config.vision_width,
        "intermediate_size": 4 * config.vision_width,
        "num_hidden_layers": config.vision_layers,
        "num_attention_heads": config.vision_heads,
        "image_size": TILE,
        "patch_size": PATCH,
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-6,
    }
    hub = Idefics3Config(
        text_config=text,
        vision_config=vision,
        scale_factor=SCALE_FACTOR,
        image_token_id=tokenizer.token_to_id("<image>"),
        tie_word_embeddings=False,
        pad_token_id=ids["pad"],
    )
    hub.architectures, hub.dtype = ["Idefics3ForConditionalGeneration"], "bfloat16"
    return hub, ids


def _write_json(path, content):
    path.write_text(json.dumps(content, indent=2) + "\n")


def export(model, config, tokenizer, folder):
    folder.mkdir(parents=True, exist_ok=True)
    hub, ids = hub_config(config, tokenizer)
    hub.save_pretrained(folder)
    weights = {name: tensor.detach().to(torch.bfloat16).contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<end_of_utterance>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        additional_special_tokens=[*LAST_SPECIALS[-3:-1], LAST_SPECIALS[-1]],
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    _write_json(folder / "tokenizer_config.json", {**settings, "processor_class": "Idefics3Processor"})
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    half = [0.5, 0.5, 0.5]
    _write_json(
        folder / "preprocessor_config.json",
        {
            "do_convert_rgb": True,
            "do_image_splitting": True,
            "do_normalize": True,
            "do_pad": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": half,
            "image_processor_type": "Idefics3ImageProcessor",
            "image_std": half,
            "max_image_size": {"longest_edge": TILE},
            "processor_class": "Idefics3Processor",
            "resample": 1,
            "rescale_factor": 1 / 255,
            "size": {"longest_edge": LONGEST_EDGE},
        },
    )
    _write_json(folder / "processor_config.json", {"image_seq_len": TOKENS**2, "processor_class": "Idefics3Processor"})
    _write_json(
        folder / "generation_config.json",
        {"_from_model_config": True, "bos_token_id": ids["bos"], "eos_token_id": ids["eos"], "pad_token_id": ids["pad"]},
    )
    # Graphs of other weights.
    shutil.rmtree(folder / "onnx", ignore_errors=True)
    write_sums(folder)
