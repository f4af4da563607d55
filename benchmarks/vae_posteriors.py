"""VAEs on digits whose posteriors are normal, or bent by an IAF or an NSF, by held-out nats a row.

    python benchmarks/vae_posteriors.py [--seeds 3] [--latents 2] [--steps 1500]

One network in all of them, but for the flow. The gap is that of the ELBO to the importance-sampled log-likelihood: what
the shape of the posterior costs on rows that took no part in the fit. Differences to the normal posterior are paired
by seeds.
"""

import argparse
import math

import torch
from sklearn.datasets import load_digits

import pyro_lvm as lvm

NUM_TRAIN, BATCH, RATE, HIDDEN = 1_400, 100, 3e-3, (128, 128)
CONTEXT, BINS, DRAWS = 16, 8, 1_000
POSTERIORS = {
    "normal": lambda L: None,
    "IAF": lambda L: lvm.flows.IAF(L, 2, hidden=(64, 64), context=CONTEXT),
    "NSF": lambda L: lvm.flows.NSF(L, 4, BINS, coupling=True, hidden=(64, 64), context=CONTEXT),
}


def digits(seed):
    """Binary images, `[N, 64]`, to fit and to hold out."""
    x = torch.as_tensor(load_digits().data > 7.5).float()
    x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))]
    return x[:NUM_TRAIN], x[NUM_TRAIN:]


def held_out(posterior, L, seed, num_steps):
    """The log-likelihood and the ELBO, nats a row."""

    def falling(optimizer):
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)

    train, test = digits(seed)
    torch.manual_seed(seed)
    vae = lvm.models.VAE(64, L, HIDDEN, flow=POSTERIORS[posterior](L))
    options = {"num_steps": num_steps, "batch_size": BATCH, "optim": RATE, "scheduler": falling, "progress": False}
    result = lvm.fit(vae, None, train, seed=seed, **options)
    elbos = torch.stack([result.score(test, num_draws=1, seed=draw).value for draw in range(20)])
    return result.score(test, num_draws=DRAWS).value.mean(), elbos.mean()


def cell(values):
    return f"{values.mean():8.3f} ± {values.std() / math.sqrt(len(values)):.3f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latents", nargs="+", type=int, default=(2,))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1_500)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"held-out nats a row, means and standard errors of {args.seeds} seeds, {args.steps} steps")
    for L in args.latents:
        scores = {
            name: torch.tensor([held_out(name, L, seed, args.steps) for seed in range(args.seeds)]).double()
            for name in POSTERIORS
        }
        for name, found in scores.items():
            log_likelihood, elbo = found.unbind(-1)
            print(
                f"{L} latents, {name}: log-likelihood {cell(log_likelihood)}, gap {cell(log_likelihood - elbo)}, "
                f"over normal {cell(log_likelihood - scores['normal'][:, 0])}",
                flush=True,
            )


if __name__ == "__main__":
    main()
