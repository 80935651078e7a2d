"""Muon for the matrices inside the layers, AdamW for everything else, and a schedule that follows the clock."""

import time

import torch


class Muon(torch.optim.Optimizer):
    """Momentum whose step is made orthogonal, scaled so that its size is AdamW's.

    torch.optim.Muon does the iteration in bfloat16, which a CPU without it emulates: slower than the backward pass.
    """

    def __init__(self, parameters, lr, momentum=0.95, weight_decay=0.01):
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            by_shape = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape.setdefault(parameter.shape, []).append(parameter)
            for shape, parameters in by_shape.items():
                updates = orthogonal(torch.stack([self._momentum(p, group["momentum"]) for p in parameters]))
                scale = -group["lr"] * 0.2 * max(shape) ** 0.5
                for parameter, direction in zip(parameters, updates):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(direction, alpha=scale)

    def _momentum(self, parameter, momentum):
        state = self.state[parameter]
        average = state.setdefault("average", torch.zeros_like(parameter))
        average.lerp_(parameter.grad, 1 - momentum)
        return parameter.grad.lerp(average, momentum)  # Nesterov


def orthogonal(x, steps=5):
    """The nearest orthogonal matrices, roughly, by a quintic Newton-Schulz iteration."""
    wide = x.shape[-2] > x.shape[-1]
    x = x.mT if wide else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.775 * gram + 2.0315 * gram @ gram) @ x
    return x.mT if wide else x


def make_optimisers(modules, muon_lr=5e-3, adam_lr=3e-3, weight_decay=0.01):
    matrices, others = [], []
    for module in modules:
        for name, parameter in module.named_parameters():
            hidden = parameter.dim() == 2 and (".layers." in f".{name}" or "modality_projection" in name)
            (matrices if hidden else others).append(parameter)
    optimisers = [Muon(matrices, muon_lr, weight_decay=weight_decay), torch.optim.AdamW(others, adam_lr, betas=(0.9, 0.98), weight_decay=0.0)]
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["peak_lr"] = group["lr"]
    return optimisers


class Clock:
    """Warm-up, a plateau, and a linear decay over the last part of the minutes given.

    Stages are measured in minutes, not in steps: the machine is shared, and the decay must happen before time is up.
    """

    def __init__(self, minutes, decay=0.3, warmup_steps=60):
        self.start, self.minutes, self.decay, self.warmup_steps, self.step = time.time(), minutes, decay, warmup_steps, 0

    def progress(self):
        return (time.time() - self.start) / 60 / self.minutes

    def tick(self, optimisers):
        """Sets the learning rates of the next step; false when time is up."""
        progress, self.step = self.progress(), self.step + 1
        factor = min(1.0, self.step / self.warmup_steps, max(0.02, (1 - progress) / self.decay))
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = group["peak_lr"] * factor
        return progress < 1


def update(optimisers, modules, loss, clip=1.0):
    for optimiser in optimisers:
        optimiser.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_([p for m in modules for p in m.parameters() if p.grad is not None], clip)
    for optimiser in optimisers:
        optimiser.step()
