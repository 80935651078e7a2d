"""A training run on disk: the model with its training-only modules, a checkpoint to resume from, and a log."""

import json
import os
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from .model import Config, DemoModel

SAVE_EVERY_SECONDS = 90
HEADS = Path(__file__).parent / "heads.safetensors"  # of the shipped model, which does not need them to answer


def fast(function):
    """Compiled, its matrix products in bfloat16; the result in float32, for the losses."""
    compiled = torch.compile(function, dynamic=True)

    def call(*inputs):
        with torch.autocast("cpu", torch.bfloat16):
            outputs = compiled(*inputs)
        return tuple(x.float() for x in outputs) if isinstance(outputs, tuple) else outputs.float()

    return call


def _exported(folder):
    extras = {}
    for key, tensor in load_file(HEADS).items():
        module, name = key.split("/")
        extras.setdefault(module, {})[name] = tensor.float()
    return {"model": {name: t.float() for name, t in load_file(Path(folder) / "model.safetensors").items()}, "extras": extras}


class Run:
    def __init__(self, folder, config=Config(), seed=1, start=None):
        """Goes on from the checkpoint in `folder`, else from the exported model in `start`, else from nothing."""
        torch.manual_seed(seed)
        self.folder, self.config = Path(folder), config
        self.folder.mkdir(parents=True, exist_ok=True)
        self.model, self.extras, self.saved_at = DemoModel(config), {}, time.time()
        self.checkpoint = torch.load(self._path(), weights_only=True) if self._path().exists() else _exported(start) if start else {}
        if self.checkpoint:
            self.model.load_state_dict(self.checkpoint["model"])
        self.encode = fast(self.model.encode)
        self.hidden = fast(self.model.hidden)

    def _path(self):
        return self.folder / "checkpoint.pt"

    def training_module(self, name, module):
        """Registers a module that only training needs; it continues from the checkpoint if that holds it."""
        if name in self.checkpoint.get("extras", {}):
            module.load_state_dict(self.checkpoint["extras"][name])
        self.extras[name] = module
        return module

    def save(self):
        extras = {**self.checkpoint.get("extras", {}), **{name: m.state_dict() for name, m in self.extras.items()}}
        state = {"model": self.model.state_dict(), "extras": extras}
        torch.save(state, self._path().with_suffix(".new"))
        os.replace(self._path().with_suffix(".new"), self._path())
        self.saved_at = time.time()

    def save_heads(self):
        """Keeps the training-only modules beside the code, so that training can go on from the exported model."""
        extras = self.checkpoint["extras"]
        save_file({f"{module}/{name}": t.to(torch.bfloat16) for module, state in extras.items() for name, t in state.items()}, HEADS)

    def save_now_and_then(self):
        if time.time() - self.saved_at > SAVE_EVERY_SECONDS:
            self.save()

    def log(self, stage, step, progress, losses, rates):
        rounded = lambda values: {name: round(float(torch.as_tensor(value).detach()), 3) for name, value in values.items()}
        entry = {"time": time.strftime("%H:%M:%S"), "stage": stage, "step": step, "progress": round(progress, 3)}
        line = json.dumps({**entry, "losses": rounded(losses), "rates": rounded(rates)})
        print(line, flush=True)
        with open(self.folder / "log.jsonl", "a") as log:
            log.write(line + "\n")
