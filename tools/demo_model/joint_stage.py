"""Stage 3: encoder, connector and language model together, on pictures, with the dense labels kept as company."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from .batches import answer_logits, answer_loss, pack, right_answers
from .dense import SYMBOL_WIDTH, DenseHeads, hit_rates, symbols, to_tensors
from .labels import label
from .optim import Clock, make_optimisers, update
from .questions import ask_several
from .render import render
from .scenes import sample_scene
from .tiles import Grid, grid_of, split

OVERVIEW_ONLY = Grid(0, 0)
OVERVIEW_SHARE = 0.4  # of the batches; the overview alone is a fifth of the work, and must suffice for a small tile budget
ALIGNMENT_BATCHES = 60
WEIGHT_DECAY = 0.1
TEXT_SHARE = 0.4  # of the scenes; reading is what takes longest to learn


class PictureBatches(IterableDataset):
    """Scenes with all their tiles, or more scenes with only the overview."""

    def __init__(self, encoder, seed, overview_share=OVERVIEW_SHARE):
        self.encoder, self.seed, self.overview_share = encoder, seed, overview_share

    def __iter__(self):
        torch.set_num_threads(1)
        worker = torch.utils.data.get_worker_info()
        rng = np.random.default_rng((self.seed, worker.id if worker else 0))
        while True:
            yield self.batch(rng, rng.random() < self.overview_share)

    def batch(self, rng, overview):
        tiles, labels, grids, questions = [], [], [], []
        for _ in range(28 if overview else 9):
            scene = sample_scene(rng, free_text=True, text_share=TEXT_SHARE)
            cut, known = split(render(scene, rng)), label(scene)
            tiles.append(cut[-1:] if overview else cut)
            labels.append(known.pick([len(cut) - 1]) if overview else known)
            grids.append(OVERVIEW_ONLY if overview else grid_of(scene.width, scene.height))
            questions.append(ask_several(scene, rng, 5 if overview else 8))
        return torch.from_numpy(np.concatenate(tiles)), to_tensors(labels[0].stack_with(labels[1:])), pack(self.encoder, grids, questions, rng), questions


def load_batches(batches):
    return iter(DataLoader(batches, batch_size=None, num_workers=1, prefetch_factor=8))


@torch.no_grad()
def align_connector(run, code, batches):
    """Replaces the connector by the least-squares map from what the encoder sees to the code that the language model reads."""
    projection = run.model.model.connector.modality_projection.proj
    width = projection.weight.shape[1]
    gram, cross = torch.zeros(width, width), torch.zeros(width, run.config.text_width)
    projection.weight = nn.Parameter(torch.eye(width))  # so that the connector hands out its input
    for _ in range(ALIGNMENT_BATCHES):
        tiles, labels, *_ = next(batches)
        inputs = run.model.encode(tiles)[1].flatten(0, 1)
        gram += inputs.T @ inputs
        cross += inputs.T @ code(symbols(labels)).flatten(0, 1)
    gram += 1e-3 * gram.diagonal().mean() * torch.eye(width)
    projection.weight = nn.Parameter(torch.linalg.solve(gram, cross).T.contiguous())


def train_jointly(run, encoder, minutes, seed, align, muon_lr, adam_lr, decay):
    code = run.training_module("symbol_code", nn.Linear(SYMBOL_WIDTH, run.config.text_width, bias=False)).requires_grad_(False)
    heads = run.training_module("dense_heads", DenseHeads(run.config))
    batches = load_batches(PictureBatches(encoder, seed))
    if align:
        align_connector(run, code, batches)
    modules = [run.model, heads]
    optimisers, clock = make_optimisers(modules, muon_lr, adam_lr, WEIGHT_DECAY), Clock(minutes, decay)
    while clock.tick(optimisers):
        tiles, labels, packed, questions = next(batches)
        patches, tokens = run.encode(tiles)
        logits = answer_logits(run, packed, tokens.flatten(0, 1))
        losses, predicted = heads.losses(patches, tokens, labels)
        answer, dense = answer_loss(logits, packed), sum(losses.values())
        meaning = F.mse_loss(tokens, code(symbols(labels)))
        update(optimisers, modules, 2 * answer + 0.5 * dense + meaning)
        if clock.step % 25 == 0:
            rates = {**right_answers(logits, packed, questions), **hit_rates(predicted, labels)}
            run.log("joint", clock.step, clock.progress(), {"answer": answer, "dense": dense, "meaning": meaning}, rates)
        run.save_now_and_then()
    run.save()
