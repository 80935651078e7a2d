"""Stage 2: the language model learns to answer from symbolic scenes, while (or before) the encoder learns to see.

Each image token is a linear code of its true labels. Where things are, how many, and how to say it, is so learned without
waiting for pixels; the connector then only has to speak that code.
"""

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from .batches import answer_logits, answer_loss, pack, right_answers
from .dense import SYMBOL_WIDTH, symbols, to_tensors
from .labels import label
from .optim import Clock, make_optimisers, update
from .questions import ask_several
from .scenes import sample_scene
from .tiles import Grid, grid_of

SCENES_PER_BATCH, QUESTIONS_PER_SCENE = 24, 10
MUON_LR, ADAM_LR, WEIGHT_DECAY = 1.5e-3, 1.5e-3, 0.1
OVERVIEW_ONLY = Grid(0, 0)


class SymbolicBatches(IterableDataset):
    """With `overview_share` of the batches the crops are left out, which makes them cheaper."""

    def __init__(self, encoder, seed, overview_share):
        self.encoder, self.seed, self.overview_share = encoder, seed, overview_share

    def __iter__(self):
        torch.set_num_threads(1)
        rng = np.random.default_rng((self.seed, 1))
        while True:
            overview = rng.random() < self.overview_share
            coded, grids, questions = [], [], []
            for _ in range(SCENES_PER_BATCH if overview else SCENES_PER_BATCH // 2):
                scene = sample_scene(rng)
                labels = to_tensors(label(scene))
                coded.append(symbols(labels)[-1:] if overview else symbols(labels))
                grids.append(OVERVIEW_ONLY if overview else grid_of(scene.width, scene.height))
                questions.append(ask_several(scene, rng, QUESTIONS_PER_SCENE))
            yield torch.cat(coded), pack(self.encoder, grids, questions, rng), questions


def train_language(run, encoder, minutes, seed, overview_share):
    code = run.training_module("symbol_code", nn.Linear(SYMBOL_WIDTH, run.config.text_width, bias=False))
    modules = [run.model.model.text_model, run.model.lm_head, code]
    # At the encoder's rates the attention saturates before it has found what to look at, and learning stops.
    optimisers = make_optimisers(modules, MUON_LR, ADAM_LR, WEIGHT_DECAY)
    clock = Clock(minutes, decay=0.2)
    batches = iter(DataLoader(SymbolicBatches(encoder, seed, overview_share), batch_size=None, num_workers=1, prefetch_factor=8))
    while clock.tick(optimisers):
        coded, packed, questions = next(batches)
        logits = answer_logits(run, packed, code(coded).flatten(0, 1))
        loss = answer_loss(logits, packed)
        update(optimisers, modules, loss)
        if clock.step % 25 == 0:
            run.log("language", clock.step, clock.progress(), {"answer": loss}, right_answers(logits, packed, questions))
        run.save_now_and_then()
    run.save()
