"""Held-out log-likelihoods of MAF and NSF, by `pyro_lvm` and by zuko, fitted in the same way to the same rows.

    python benchmarks/flow_densities.py [--seeds 5] [--steps 1000]

Both packages have as many transforms, hidden units and bins, see the features in their own order and in reverse in
turn, and take the same steps of Adam, with the same batches and a cosine schedule. Each seed has rows and starting
weights of its own, and all are fitted side by side; the difference is paired by seeds. The truth is the score of the
density that the rows are drawn from.
"""

import argparse
import math

import torch
import zuko
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

import pyro_lvm as lvm

TRANSFORMS, HIDDEN, BINS = {"MAF": 5, "NSF": 3}, (64, 64), 8
NUM_ROWS, BATCH, RATE = 10_000, 256, 5e-3
FLOWS = {
    ("MAF", "ours"): lambda: lvm.flows.MAF(2, TRANSFORMS["MAF"], HIDDEN),
    ("MAF", "zuko"): lambda: zuko.flows.MAF(2, transforms=TRANSFORMS["MAF"], hidden_features=HIDDEN),
    ("NSF", "ours"): lambda: lvm.flows.NSF(2, TRANSFORMS["NSF"], BINS, hidden=HIDDEN),
    ("NSF", "zuko"): lambda: zuko.flows.NSF(2, transforms=TRANSFORMS["NSF"], bins=BINS, hidden_features=HIDDEN),
}


class Ribbon(MixtureSameFamily):
    """Points on curves, with normal noise."""

    def __init__(self, points, noise):
        weights = Categorical(torch.ones(len(points)))
        super().__init__(weights, Independent(Normal(points, noise), 1), validate_args=False)


class Checkerboard:
    """Uniform on the eight dark squares of a board of sixteen, from -2 to 2."""

    def sample(self, shape):
        x = 4 * torch.rand(*shape) - 2
        y = torch.rand(*shape) + 2 * torch.randint(2, shape) - 2 + x.floor() % 2
        return torch.stack([x, y], -1)

    def log_prob(self, x):
        return torch.full(x.shape[:-1], -math.log(8))


def densities():
    angles = torch.linspace(0, 2 * math.pi, 201)[:-1]
    circle = torch.stack([angles.cos(), angles.sin()], -1)
    upper = torch.stack([angles.div(2).cos(), angles.div(2).sin()], -1) - torch.tensor([0.5, 0.25])
    return {
        "two moons": Ribbon(1.5 * torch.cat([upper, -upper]), 0.1),
        "rings": Ribbon(torch.cat([0.8 * circle, 1.6 * circle, 2.4 * circle]), 0.08),
        "checkerboard": Checkerboard(),
    }


class LogProb(torch.nn.Module):
    """The log-densities of a flow, as a module's output."""

    def __init__(self, flow):
        super().__init__()
        self.flow = flow

    def forward(self, x):
        return self.flow().log_prob(x)


def scores(make, train, test, num_steps):
    """Nats a held-out row, `[S]`, of flows fitted to rows `[S, N, 2]` side by side: each a seed of its own."""
    modules = []
    for seed in range(len(train)):
        torch.manual_seed(seed)
        modules.append(LogProb(make()))
    params, buffers = torch.func.stack_module_state(modules)

    def mean_log_prob(params, buffers, x):
        return torch.func.functional_call(modules[0], (params, buffers), (x,)).mean()

    each = torch.vmap(mean_log_prob)
    optimizer = torch.optim.Adam(params.values(), RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    batches = torch.Generator().manual_seed(0)
    for _ in range(num_steps):
        optimizer.zero_grad()
        batch = train[:, torch.randint(train.shape[1], (BATCH,), generator=batches)]
        (-each(params, buffers, batch).sum()).backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        return each(params, buffers, test)


def summary(values):
    return f"{values.mean():.4f} ± {values.std() / math.sqrt(len(values)):.4f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1_000)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"nats a row, mean and standard error of {args.seeds} seeds, {args.steps} steps")
    for data, density in densities().items():
        torch.manual_seed(0)
        train, test = density.sample((2, args.seeds, NUM_ROWS))
        truth = density.log_prob(test[0]).mean()
        for name in TRANSFORMS:
            ours, theirs = (scores(FLOWS[name, package], train, test, args.steps) for package in ("ours", "zuko"))
            print(
                f"{data}, {name}: ours {summary(ours)}, zuko {summary(theirs)}, difference {summary(ours - theirs)}, "
                f"truth {truth:.4f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
