"""Reference posterior of the breast-cancer logistic regression, by a long NUTS run of NumPyro.

The model is ``BayesianLogisticRegression(30)``: standard normal priors on the weights and the intercept, features
standardised. The figures go to ``nuts_breast_cancer.json`` beside this script, which the tests read.

    python benchmarks/nuts_breast_cancer.py
"""

import json
from pathlib import Path

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.diagnostics import effective_sample_size, split_gelman_rubin
from numpyro.infer import MCMC, NUTS
from sklearn.datasets import load_breast_cancer

NUM_CHAINS, NUM_WARMUP, NUM_DRAWS = 4, 2_000, 10_000


def model(X, y):
    weights = numpyro.sample("weights", dist.Normal(0.0, 1.0).expand([X.shape[1]]).to_event(1))
    intercept = numpyro.sample("intercept", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Bernoulli(logits=X @ weights + intercept), obs=y)


def summarise(draws):
    """Moments of draws ``[chains, draws, parameters]``, and the Monte Carlo standard errors of both."""
    mean, sd = draws.mean((0, 1)), draws.std((0, 1), ddof=1)
    squares = (draws - mean) ** 2
    sd_of_squares = squares.std((0, 1), ddof=1)
    ess, ess_squares = effective_sample_size(draws), effective_sample_size(squares)
    return {
        "mean": mean,
        "sd": sd,
        "mcse": sd / np.sqrt(ess),
        "mcse_sd": sd_of_squares / np.sqrt(ess_squares) / (2 * sd),
        "ess": ess,
        "r_hat": split_gelman_rubin(draws),
    }


def main():
    numpyro.enable_x64()
    X, y = load_breast_cancer(return_X_y=True)
    X = (X - X.mean(0)) / X.std(0)
    mcmc = MCMC(
        NUTS(model, target_accept_prob=0.9),
        num_warmup=NUM_WARMUP,
        num_samples=NUM_DRAWS,
        num_chains=NUM_CHAINS,
        chain_method="sequential",
    )
    mcmc.run(jax.random.PRNGKey(0), X, y, extra_fields=("diverging",))
    draws = {name: np.asarray(value) for name, value in mcmc.get_samples(group_by_chain=True).items()}
    summary = summarise(np.concatenate([draws["weights"], draws["intercept"][..., None]], -1))
    divergences = int(mcmc.get_extra_fields()["diverging"].sum())
    print(
        f"R-hat at most {summary['r_hat'].max():.5f}, ESS at least {summary['ess'].min():.0f}, "
        f"{divergences} divergences, mcse of the mean at most {(summary['mcse'] / summary['sd']).max():.4f} sd, "
        f"of the sd {(summary['mcse_sd'] / summary['sd']).max():.4f} sd"
    )
    names = [f"weights[{i}]" for i in range(X.shape[1])] + ["intercept"]
    columns = ("mean", "sd", "mcse", "mcse_sd")
    reference = {
        "sampler": f"NumPyro {numpyro.__version__} NUTS, {NUM_CHAINS} chains of {NUM_DRAWS} draws, float64",
        "max_r_hat": round(float(summary["r_hat"].max()), 6),
        "min_ess": round(float(summary["ess"].min())),
        "divergences": divergences,
        "parameters": {
            name: {column: round(float(summary[column][i]), 8) for column in columns} for i, name in enumerate(names)
        },
    }
    path = Path(__file__).with_suffix(".json")
    path.write_text(json.dumps(reference, indent=1) + "\n")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
