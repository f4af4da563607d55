"""Microseconds a step of ``lvm.fit`` and of stock Pyro's SVI, on the same models, guides, data and optimizer.

Both run in turn, and medians of five are printed, so that a busy machine slows both alike.

    python benchmarks/bench_fit.py [--threads 1] [--repeats 5]
"""

import argparse
import statistics
import time

import pyro
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from sklearn.datasets import load_breast_cancer, load_digits, load_iris

import pyro_lvm as lvm

RATE = 1e-3


def logistic_regression(name, auto_guide):
    X, y = load_breast_cancer(return_X_y=True)
    X = torch.tensor((X - X.mean(0)) / X.std(0), dtype=torch.float32)

    def make():
        model = lvm.models.BayesianLogisticRegression(30)
        return model, name, auto_guide(model), Trace_ELBO()

    return make, (X, torch.tensor(y)), None, 500


def mixture():
    x = torch.tensor(load_iris().data, dtype=torch.float32)

    def make():
        model = lvm.models.GaussianMixture(3, 4).initialize(x)
        return model, None, lambda x: None, TraceEnum_ELBO(max_plate_nesting=1)

    return make, (x,), None, 300


def vae():
    x = torch.tensor(load_digits().data > 7.5, dtype=torch.float32)

    def make():
        model = lvm.models.VAE(64, 8, hidden=(128,))
        return model, None, model.guide, Trace_ELBO()

    return make, (x,), 128, 300


def microseconds_of_fit(make, data, batch_size, num_steps):
    """Of a step; the preparation of a fit, which happens once, is returned beside it, in milliseconds."""
    model, guide, _, _ = make()
    began = time.perf_counter()
    result = lvm.fit(
        model, guide, *data, num_steps=num_steps, optim=RATE, batch_size=batch_size, compile=False, progress=False
    )
    seconds = time.perf_counter() - began
    return 1e6 * result.seconds / num_steps, 1e3 * (seconds - result.seconds)


def microseconds_of_pyro(make, data, batch_size, num_steps):
    pyro.clear_param_store()
    model, _, guide, elbo = make()
    svi = SVI(model, guide, pyro.optim.Adam({"lr": RATE}), elbo)
    num_rows = len(data[0])
    svi.step(*(d[:batch_size] for d in data))  # makes the parameters
    order = torch.randperm(num_rows)
    began = time.perf_counter()
    for step in range(num_steps):
        if batch_size is None:
            svi.step(*data)
            continue
        first = step * batch_size % (num_rows - batch_size)
        index = order[first : first + batch_size]
        with poutine.scale(scale=num_rows / batch_size):
            svi.step(*(d[index] for d in data))
    return 1e6 * (time.perf_counter() - began) / num_steps


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--repeats", type=int, default=5, help="runs whose median is printed")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    cases = {
        "logistic regression, mean-field": logistic_regression("mean_field", AutoNormal),
        "logistic regression, full-rank": logistic_regression("full_rank", AutoMultivariateNormal),
        "mixture on iris, enumerated": mixture(),
        "VAE on digits, batches of 128": vae(),
    }
    print(f"torch {torch.__version__}, Pyro {pyro.__version__}, {options.threads} thread(s), eager")
    print(f"{'microseconds a step':<34}{'Pyro':>8}{'lvm.fit':>9}{'ratio':>7}{'prepare, ms':>13}")
    for name, (make, data, batch_size, num_steps) in cases.items():
        microseconds_of_fit(make, data, batch_size, 20)
        microseconds_of_pyro(make, data, batch_size, 20)
        theirs, ours, preparing = [], [], []
        for seed in range(options.repeats):
            pyro.set_rng_seed(seed)
            theirs.append(microseconds_of_pyro(make, data, batch_size, num_steps))
            step, prepare = microseconds_of_fit(make, data, batch_size, num_steps)
            ours.append(step)
            preparing.append(prepare)
        stock, fit = statistics.median(theirs), statistics.median(ours)
        print(f"{name:<34}{stock:>8.0f}{fit:>9.0f}{fit / stock:>7.2f}{statistics.median(preparing):>13.0f}", flush=True)


if __name__ == "__main__":
    main()
