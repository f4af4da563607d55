"""Held-out log-likelihood of a VAE on digits by the number of particles, in the ELBO and in the bound of the IWAE.

The table of Burda et al. (2016, "Importance weighted autoencoders", table 1) at the scale of scikit-learn's digits: the
same networks, steps, batches and starting weights for each row, and only the loss differs. ``Trace_ELBO(K)`` is the
control: it averages as many particles outside the logarithm, so that what it gains is less noise and no tighter bound.
Burda et al. take the total gradient ("total"); "dreg" is the one whose signal does not fade with K.

The log-likelihood is estimated with 5,000 draws from each fit's own guide, as in the paper. Differences are paired: by
row, and by the seed that starts the networks. An active unit has a posterior mean whose variance over the held-out rows
is above 0.01. Seconds are of the clock, and mean little on a busy machine. The figures go to ``iwae_digits.json``
beside this script.

    python benchmarks/iwae_digits.py [--steps 3000] [--seeds 3]
"""

import argparse
import json
from pathlib import Path

import torch
from sklearn.datasets import load_digits

import pyro_lvm as lvm

NUM_LATENTS, HIDDEN, BATCH, RATE, NUM_DRAWS = 20, (64,), 100, 1e-3, 5_000
LOSSES = {
    "ELBO, K=1": lvm.elbo.Trace_ELBO(1),
    "ELBO, K=5": lvm.elbo.Trace_ELBO(5),
    "ELBO, K=50": lvm.elbo.Trace_ELBO(50),
    "IWAE, K=5, total": lvm.elbo.TraceIWAE_ELBO(5, "total"),
    "IWAE, K=50, total": lvm.elbo.TraceIWAE_ELBO(50, "total"),
    "IWAE, K=5, dreg": lvm.elbo.TraceIWAE_ELBO(5, "dreg"),
    "IWAE, K=50, dreg": lvm.elbo.TraceIWAE_ELBO(50, "dreg"),
}


def digits():
    """Training and held-out rows."""
    x = torch.tensor(load_digits().data > 7.5, dtype=torch.float32)
    x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))]
    return x[:1_437], x[1_437:]


def evaluate(elbo, train, test, num_steps, seed):
    """The score of each held-out row, its Monte Carlo error, the number of active units and the seconds of the fit."""
    torch.manual_seed(seed)  # the networks' starting weights
    vae = lvm.models.VAE(train.shape[1], NUM_LATENTS, hidden=HIDDEN)
    result = lvm.fit(
        vae, None, train, elbo=elbo, num_steps=num_steps, batch_size=BATCH, optim=RATE, seed=seed, progress=False
    )
    score = result.score(test, num_draws=NUM_DRAWS)
    with torch.no_grad():
        active = (vae.encode(test)[0].var(0) > 0.01).sum().item()
    return score.value, score.standard_error, active, result.seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=3_000, help="steps of each fit")
    parser.add_argument("--seeds", type=int, default=3, help="fits of each loss")
    options = parser.parse_args()
    torch.set_num_threads(1)
    train, test = digits()

    def standard_error(rows):
        return (rows.std() / len(rows) ** 0.5).item()

    print(f"{len(train)} digits to fit, {len(test)} held out; {options.steps:,} steps, {options.seeds} seeds, 1 thread")
    print("nats per held-out digit, with standard errors over digits; the spread of the difference is over seeds")
    print(f"{'':<20}{'log p(x)':>17}{'less ELBO, K=1':>18}{'spread':>8}{'MC error':>10}{'active':>8}{'seconds':>9}")
    table, base = {}, None
    for name, elbo in LOSSES.items():
        fits = [evaluate(elbo, train, test, options.steps, seed) for seed in range(options.seeds)]
        scores = torch.stack([fit[0] for fit in fits])
        base = scores if base is None else base
        difference = (scores - base).mean(0)
        by_seed = (scores - base).mean(1)
        row = {
            "log_likelihood": scores.mean().item(),
            "standard_error": standard_error(scores.mean(0)),
            "difference": difference.mean().item(),
            "standard_error_of_difference": standard_error(difference),
            "difference_by_seed": by_seed.tolist(),
            "monte_carlo_error": (torch.stack([f[1] for f in fits]).square().sum().sqrt() / scores.numel()).item(),
            "active_units": [fit[2] for fit in fits],
            "seconds": [round(fit[3], 1) for fit in fits],
        }
        table[name] = {k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}
        spread = by_seed.std().item() if len(fits) > 1 else float("nan")
        print(
            f"{name:<20}{row['log_likelihood']:>9.3f} +- {row['standard_error']:.2f}"
            f"{row['difference']:>9.3f} +- {row['standard_error_of_difference']:.3f}{spread:>8.3f}"
            f"{row['monte_carlo_error']:>10.4f}{sum(row['active_units']) / len(fits):>8.1f}"
            f"{sum(row['seconds']) / len(fits):>9.1f}",
            flush=True,
        )
    settings = {
        "torch": torch.__version__,
        "num_latents": NUM_LATENTS,
        "hidden": list(HIDDEN),
        "batch_size": BATCH,
        "learning_rate": RATE,
        "num_steps": options.steps,
        "num_seeds": options.seeds,
        "num_draws": NUM_DRAWS,
    }
    path = Path(__file__).with_suffix(".json")
    path.write_text(json.dumps({"settings": settings, "losses": table}, indent=1) + "\n")
    print(f"wrote {path.name}")


if __name__ == "__main__":
    main()
