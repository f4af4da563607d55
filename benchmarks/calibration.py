"""Seconds of `calibrate`, and whether it tells an exact guide from one that is 0.8 times as wide.

    python benchmarks/calibration.py

Three models with known posteriors: a regression, groups with a common mean, counts. Each is calibrated by 500
simulations, with its exact guide, with the same guide too narrow, and with a fitted full-rank guide.
"""

import pyro
import pyro.distributions as dist
import torch

import pyro_lvm as lvm

X = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))


def regression(X, y):
    b = pyro.sample("b", dist.Normal(torch.zeros(4), 1.0).to_event(1))
    with pyro.plate("rows", len(X)):
        pyro.sample("y", dist.Normal(X @ b, 1.0), obs=y)


def regression_guide(factor):
    def guide(X, y):
        covariance = torch.linalg.inv(X.T @ X + torch.eye(4))
        pyro.sample("b", dist.MultivariateNormal(covariance @ (X.T @ y), factor**2 * covariance))

    return guide


def groups(y):
    mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
    with pyro.plate("groups", len(y)):
        effect = pyro.sample("effect", dist.Normal(mean, 3.0))
        pyro.sample("y", dist.Normal(effect, 2.0), obs=y)


def groups_guide(factor):
    def guide(y):
        precision = 1 / 25 + len(y) / 13
        mean = pyro.sample("mean", dist.Normal(y.sum() / 13 / precision, factor * precision**-0.5))
        within = 1 / 9 + 1 / 4
        with pyro.plate("groups", len(y)):
            pyro.sample("effect", dist.Normal((mean / 9 + y / 4) / within, factor * within**-0.5))

    return guide


def counts(y):
    with pyro.plate("sites", y.shape[1]):
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Poisson(rate), obs=y)


def counts_guide(factor):
    def guide(y):
        with pyro.plate("sites", y.shape[1]):
            pyro.sample("rate", dist.Gamma((2 + y.sum(0)) / factor**2, (1.0 + len(y)) / factor**2))

    return guide


MODELS = {
    "regression": (regression, regression_guide, (X, torch.zeros(50))),
    "groups": (groups, groups_guide, (torch.zeros(8),)),
    "counts": (counts, counts_guide, (torch.zeros(10, 3),)),
}


def main():
    torch.set_num_threads(1)
    print(f"{'model':12} {'guide':14} {'p':>9}  verdict  seconds")
    for name, (model, guide, data) in MODELS.items():
        for told, chosen in (("exact", guide(1.0)), ("sds x 0.8", guide(0.8)), ("full_rank", "full_rank")):
            found = lvm.calibrate(model, chosen, *data, num_simulations=500, progress=False)
            print(f"{name:12} {told:14} {found.p_value:9.2g}  {found.verdict:7}  {found.seconds:5.1f}", flush=True)


if __name__ == "__main__":
    main()
