"""Stage 1: the vision encoder and the connector learn to see, from dense labels on single tiles."""

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset

from .dense import DenseHeads, hit_rates, to_tensors
from .labels import label
from .optim import Clock, make_optimisers, update
from .render import render
from .scenes import sample_scene
from .tiles import split

SCENES_PER_BATCH, TILES_PER_SCENE = 14, 4


class TileBatches(IterableDataset):
    """Endless batches of tiles with their labels: of each scene the overview and some of the crops."""

    def __init__(self, seed, text_share):
        self.seed, self.text_share = seed, text_share

    def __iter__(self):
        torch.set_num_threads(1)
        worker = torch.utils.data.get_worker_info()
        rng = np.random.default_rng((self.seed, worker.id if worker else 0))
        while True:
            tiles, labels = [], []
            for _ in range(SCENES_PER_BATCH):
                scene = sample_scene(rng, free_text=True, text_share=self.text_share)
                cut = split(render(scene, rng))
                chosen = [len(cut) - 1, *rng.choice(len(cut) - 1, min(TILES_PER_SCENE, len(cut)) - 1, replace=False)]
                tiles.append(cut[chosen])
                labels.append(label(scene).pick(chosen))
            yield torch.from_numpy(np.concatenate(tiles)), to_tensors(labels[0].stack_with(labels[1:]))


def train_vision(run, minutes, seed, text_share):
    """`run` is the Run that holds the model, its checkpoint and the log."""
    heads = run.training_module("dense_heads", DenseHeads(run.config))
    modules = [run.model.model.vision_model, run.model.model.connector, heads]
    optimisers = make_optimisers(modules)
    clock = Clock(minutes)
    batches = iter(DataLoader(TileBatches(seed, text_share), batch_size=None, num_workers=1, prefetch_factor=8))
    while clock.tick(optimisers):
        tiles, labels = next(batches)
        patches, tokens = run.encode(tiles)
        losses, predicted = heads.losses(patches, tokens, labels)
        update(optimisers, modules, sum(losses.values()))
        if clock.step % 25 == 0:
            run.log(stage="vision", step=clock.step, progress=clock.progress(), losses=losses, rates=hit_rates(predicted, labels))
        run.save_now_and_then()
    run.save()
