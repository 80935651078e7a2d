#!/usr/bin/env python3
"""Ask a SmolVLM model about a picture, from Python.

python3 smolvlm_demo.py -i test_image.jpg -p "What objects are in this image?"     the bundled model, no download
python3 smolvlm_demo.py -i photo.jpg --model-size small --backend onnx             a published one, from models/
python3 smolvlm_demo.py -i photo.jpg --simulate                                    no model: only shows what would be asked
HF_TOKEN=... python3 smolvlm_demo.py -i photo.jpg --use-hf                         Hugging Face's inference API
"""

import argparse
import base64
import mimetypes
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
DEMO = ROOT / "models" / "demo"
SIZES = {"small": "SmolVLM-256M-Instruct", "medium": "SmolVLM-500M-Instruct", "large": "SmolVLM-Instruct"}
DTYPES = ("auto", "f32", "bf16", "f16", "int8", "uint8", "quantized", "q4", "q4f16", "bnb4")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "-i",
        "--image",
        nargs="+",
        default=["test_image.jpg"],
        metavar="FILE",
        help="JPEG, PNG, WebP, BMP, GIF, TIFF or PBM/PGM/PPM/PAM; default: the bundled test_image.jpg",
    )
    parser.add_argument("-p", "--prompt", default="What objects are in this image?", help="default: %(default)s")
    parser.add_argument("--model", metavar="DIR", help="checkpoint; default: the bundled models/demo")
    parser.add_argument("--model-size", choices=SIZES, help="a published checkpoint below models/")
    parser.add_argument("--backend", choices=("auto", "candle", "onnx"), default="auto")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "metal", "tensorrt"), default="auto")
    parser.add_argument("--dtype", choices=DTYPES, default="auto")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="default: one for each core")
    parser.add_argument("--max-new-tokens", type=int, default=256, metavar="N")
    parser.add_argument("--simulate", action="store_true", help="no model: show what would be asked, SIMULATED in each line")
    parser.add_argument("--use-hf", action="store_true", help="ask Hugging Face's inference API, with HF_TOKEN")
    parser.add_argument("--hf-model", metavar="ID|URL", help="a model there, or the address of an endpoint; default: that of --model-size")
    options = parser.parse_args()
    if options.model and options.model_size:
        parser.error("--model and --model-size: one of them")
    if options.simulate and options.use_hf:
        parser.error("--simulate and --use-hf: one of them")
    options.image = [picture(name) for name in options.image]
    for path in options.image:
        if not path.is_file():
            parser.error(f"{path}: no such file")
    return options


def picture(name):
    """The bundled picture is found from anywhere."""
    path = Path(name)
    bundled = DEMO / path.name
    return bundled if not path.exists() and path.name == name and bundled.is_file() else path


def simulate(options):
    lines = [f"image {path}: {path.stat().st_size} bytes" for path in options.image]
    lines += [f"prompt: {options.prompt}", f"backend {options.backend}, model {options.model or options.model_size or 'demo'}: not loaded"]
    lines += ["answer: none, since no model looked at the picture"]
    for line in "\n".join(lines).splitlines():
        print(f"SIMULATED {line}")


def package():
    """smolvlm as it is installed, else the checkout's."""
    try:
        import smolvlm
    except ImportError:
        sys.path.insert(0, str(ROOT / "bindings" / "python"))
        import smolvlm
    return smolvlm


def ask_model(options):
    smolvlm = package()
    where = options.model or (ROOT / "models" / SIZES[options.model_size] if options.model_size else DEMO)
    model = smolvlm.Model(where, backend=options.backend, device=options.device, dtype=options.dtype, num_threads=options.threads)
    with model.stream(*options.image, options.prompt, max_new_tokens=options.max_new_tokens) as stream:
        show(stream)
    m = stream.answer.metrics
    print(
        f"{m.backend} on {m.device} in {m.dtype}: {m.tiles} tiles, first token after {m.time_to_first_token_ms:.0f} ms, "
        f"{m.generated_tokens} tokens at {m.tokens_per_second:.1f} a second, {m.total_ms:.0f} ms in all",
        file=sys.stderr,
    )


def ask_hub(options):
    try:
        from huggingface_hub import InferenceClient
    except ImportError:
        raise ValueError("--use-hf: needs huggingface_hub (python3 -m pip install huggingface_hub)") from None
    token = os.environ.get("HF_TOKEN")
    if not token:
        raise ValueError("HF_TOKEN: not set; --use-hf needs an access token")
    where = options.hf_model or f"HuggingFaceTB/{SIZES[options.model_size or 'small']}"
    content = [{"type": "image_url", "image_url": {"url": data_url(path)}} for path in options.image]
    content.append({"type": "text", "text": options.prompt})
    messages = [{"role": "user", "content": content}]
    client = InferenceClient(model=where, token=token, timeout=120)
    chunks = client.chat_completion(messages, max_tokens=options.max_new_tokens, stream=True)
    show(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    print(f"{where} through Hugging Face's inference API", file=sys.stderr)


def data_url(path):
    kind = mimetypes.guess_type(path.name)[0] or "image/jpeg"
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def show(pieces):
    for piece in pieces:
        print(piece, end="", flush=True)
    print()


def main():
    options = arguments()
    try:
        if options.simulate:
            simulate(options)
        elif options.use_hf:
            ask_hub(options)
        else:
            ask_model(options)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        print(f"smolvlm_demo.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
