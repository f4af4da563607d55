"""What ``make demo`` runs: four models fitted to real data, with figures in the terminal and pictures in ``demo/``."""

import os
import sys
import textwrap
import time
import warnings
from pathlib import Path

os.environ.setdefault("MPLBACKEND", "Agg")
warnings.filterwarnings("ignore", r"\s*ArviZ is undergoing a major refactor", FutureWarning)

import arviz as az
import torch
from sklearn.datasets import load_breast_cancer, load_digits, load_iris, load_wine

import pyro_lvm as lvm

FOLDER = Path("demo")
COLOR = sys.stdout.isatty() and "NO_COLOR" not in os.environ


def bold(text):
    return f"\033[1m{text}\033[0m" if COLOR else text


def heading(number, title, about):
    print(
        f"\n{bold(f'{number}  {title}')}\n{textwrap.fill(about, 88, initial_indent='   ', subsequent_indent='   ')}\n"
    )


def tell(label, text):
    print(f"   {label:<22}{text}")


def table(data, names, rows=4, by=None):
    """A few rows of ArviZ's summary: the first, or those with the most of something."""
    summary = az.summary(data, var_names=names, kind="stats")
    if by is not None:
        summary = summary.sort_values(by, ascending=False, kind="stable")
    print("\n" + textwrap.indent(str(summary.head(rows)), "   "))
    if len(summary) > rows:
        print(f"   ... and {len(summary) - rows} more rows")


def keep(ax, name):
    """Write the picture of some axes, and say where it is."""
    path = FOLDER / f"{name}.png"
    ax.figure.savefig(path, dpi=120)
    tell("picture", path)


def fitted(result):
    last = max(1, len(result.losses) // 10)
    tell("fit", f"{result.num_steps:,} steps in {result.seconds:.1f} s")
    tell("ELBO", f"{-result.losses[-last:].mean():.2f} nats (mean of the last {last} steps)")


def standardised(x):
    return torch.tensor((x - x.mean(0)) / x.std(0), dtype=torch.float32)


def logistic_regression():
    heading(
        1,
        "Bayesian logistic regression of breast tumours",
        "30 correlated measurements; two guides for the same posterior. Mean-field ignores the correlations, and its "
        "intervals are too short.",
    )
    cancer = load_breast_cancer()
    X, y = standardised(cancer.data), torch.tensor(cancer.target)
    model = lvm.models.BayesianLogisticRegression(num_features=30)
    results = {}
    for name, num_steps, optim in (("mean_field", 1_500, 0.02), ("full_rank", 2_500, 0.005)):
        results[name] = lvm.fit(model, name, X, y, num_steps=num_steps, optim=optim, progress=False)
        print(f'   guide "{name}"')
        fitted(results[name])
        tell("log p(y | X)", f"{results[name].evidence(2_000)}")
    print("   Both estimate the same number. Mean field is too narrow a guide for it: believe the higher one.\n")
    best = results["full_rank"]
    probs = model.predict_proba(X, best.sample(1_000))
    tell("accuracy", f"{((probs[:, 1] > 0.5) == (y == 1)).float().mean():.1%} on the fitted tumours")
    coords, dims = {"feature": list(cancer.feature_names)}, {"weights": ["feature"]}
    data = lvm.to_arviz(best, num_draws=1_000, coords=coords, dims=dims)
    table(data, ["intercept", "weights"])
    print()
    path = FOLDER / "logistic_regression.nc"
    path.unlink(missing_ok=True)
    data.to_netcdf(path)
    tell("ArviZ file", f"{path}  (posterior, predictive draws, log-likelihood)")
    weights = {name: result.sample(2_000)["weights"] for name, result in results.items()}
    keep(lvm.plots.intervals(weights, cancer.feature_names), "logistic_regression")
    keep(lvm.plots.losses(best.losses), "losses")


def gaussian_mixture():
    heading(
        2,
        "Gaussian mixture of irises",
        "Each flower's component is discrete and is summed out, so that no guide is needed and log p(x) is exact. The "
        "best of three starts.",
    )
    iris = load_iris()
    x = torch.tensor(iris.data, dtype=torch.float32)
    results, mixtures = [], []
    for seed in range(3):
        mixtures.append(lvm.models.GaussianMixture(num_components=3, num_features=4).initialize(x, seed))
        results.append(lvm.fit(mixtures[-1], None, x, num_steps=800, optim=0.02, progress=False))
        tell(f"start {seed}", f"log p(x) = {results[-1].evidence().value:.2f} nats")
    best = max(range(3), key=lambda seed: results[seed].evidence().value)
    result, mixture = results[best], mixtures[best]
    fitted(result)
    table(lvm.to_arviz(result, num_draws=500), ["z"], by="sd")
    print()
    responsibilities = result.posterior()["z"].probs
    ax = lvm.plots.mixture(x, mixture.weights, mixture.locs, mixture.covariances, responsibilities, features=(2, 3))
    ax.set(xlabel=iris.feature_names[2], ylabel=iris.feature_names[3])
    keep(ax, "gaussian_mixture")


def ppca():
    heading(
        3,
        "Probabilistic PCA of wines",
        "The model brings its exact posterior as its guide, so that the ELBO equals the log-likelihood, which has a "
        "closed form.",
    )
    wine = load_wine()
    x = standardised(wine.data)
    model = lvm.models.PPCA(num_latents=2, num_features=x.shape[1]).initialize(x)
    result = lvm.fit(model, None, x, num_steps=1_000, optim=0.02, progress=False)
    fitted(result)
    tell("closed form", f"{model.marginal().log_prob(x).sum():.2f} nats")
    table(lvm.to_arviz(result, num_draws=500), ["z"])
    print()
    z = result.posterior()["z"].mean
    keep(lvm.plots.latent_map(z, [f"cultivar {c + 1}" for c in wine.target]), "ppca")


def vae():
    heading(
        4,
        "Variational autoencoder of handwritten digits",
        "An encoder network is the guide, and the fit sees 100 of 1,500 images a step. 297 more are held out.",
    )
    digits = load_digits()
    x = torch.tensor(digits.data > 8, dtype=torch.float32)
    train, test = x[:1_500], x[1_500:]
    torch.manual_seed(0)
    model = lvm.models.VAE(num_features=64, num_latents=2, hidden=(128,))
    result = lvm.fit(model, None, train, batch_size=100, num_steps=4_000, optim=2e-3, progress=False)
    fitted(result)
    tell("held-out log p(x)", f"{result.score(test, num_draws=200).value.mean():.2f} nats per image")
    table(lvm.to_arviz(result, num_draws=200), ["z"])
    print()
    with torch.no_grad():
        keep(lvm.plots.latent_map(model.encode(train)[0], digits.target[:1_500]), "vae_latents")
    with torch.no_grad():
        keep(lvm.plots.images(model.decode(torch.randn(60, 2)).sigmoid(), (8, 8), num_columns=12), "vae_samples")


def main():
    began = time.perf_counter()
    torch.set_num_threads(1)  # on models this small, threads only wait for each other
    FOLDER.mkdir(exist_ok=True)
    print(bold(f"pyro_lvm {lvm.__version__}") + ": four latent variable models, fitted to real data")
    for section in (logistic_regression, gaussian_mixture, ppca, vae):
        section()
    print(f"\n{bold('Done')} in {time.perf_counter() - began:.0f} s. Everything is in {FOLDER.resolve()}:")
    for path in sorted(FOLDER.glob("*.*")):
        print(f"   {path.name:<26}{path.stat().st_size / 1024:>6,.0f} KiB")
    print("Read the posterior with  arviz.from_netcdf('demo/logistic_regression.nc').")


if __name__ == "__main__":
    main()
