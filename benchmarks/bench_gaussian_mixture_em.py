"""Seconds of an iteration of EM for Gaussian mixtures, by this package's steps and by scikit-learn.

Every line is measured in a fresh process. The memory is the peak beyond the data. An iteration's seconds are the best
of several, for a busy machine only adds to them; scikit-learn's are the difference of a long fit and a short one.
The rate is that of large square matrix products in the same dtype and on the same threads; an iteration with full
covariances needs 4 N K D^2 operations, two products that use no symmetry.

    python benchmarks/bench_gaussian_mixture_em.py [--threads 2] [--repeats 10]
"""

import argparse
import json
import math
import resource
import subprocess
import sys
import time
import warnings

import numpy as np
import torch
from sklearn.mixture import GaussianMixture as SklearnMixture

from pyro_lvm.models.gaussian_mixture_em import GaussianMixtureSteps

PROBLEMS = (
    (200_000, 32, 16, "full"),
    (100_000, 64, 32, "full"),
    (1_000_000, 16, 16, "diag"),
    (1_000_000, 16, 16, "spherical"),
    (1_000_000, 16, 16, "tied"),
)


def data(N, D, K, dtype):
    generator = torch.Generator().manual_seed(0)
    locs = 2 * torch.randn(K, D, generator=generator, dtype=dtype)
    x = torch.empty(N, D, dtype=dtype)
    for rows in x.split(10_000):  # a copy of the data would hide the memory of what follows
        rows.normal_(generator=generator).add_(locs[torch.randint(K, (len(rows),), generator=generator)])
    return x


def start(x, K, covariance, runs=()):
    D, dtype = x.shape[1], x.dtype
    locs = x[torch.arange(K * math.prod(runs)) * 7].reshape(*runs, K, D)
    name, scale = {
        "full": ("scale_tril", torch.eye(D, dtype=dtype).expand(*runs, K, D, D)),
        "tied": ("scale_tril", torch.eye(D, dtype=dtype).expand(*runs, D, D)),
        "diag": ("scale", torch.ones(*runs, K, D, dtype=dtype)),
        "spherical": ("scale", torch.ones(*runs, K, dtype=dtype)),
    }[covariance]
    return {"weights": torch.full((*runs, K), 1 / K, dtype=dtype), "locs": locs, name: scale}


def ours(x, K, covariance, repeats, runs=()):
    params, steps, seconds = start(x, K, covariance, runs), GaussianMixtureSteps(), []
    for _ in range(repeats):
        begin = time.perf_counter()
        params = steps.maximize(steps.expect(params, (x,), None), params)
        seconds.append(time.perf_counter() - begin)
    return min(seconds)


def sklearn(x, K, covariance, repeats):
    x, D = x.numpy(), x.shape[1]
    precisions = {
        "full": np.stack([np.eye(D)] * K),
        "tied": np.eye(D),
        "diag": np.ones((K, D)),
        "spherical": np.ones(K),
    }

    def seconds(num_iterations):
        mixture = SklearnMixture(
            K,
            covariance_type=covariance,
            tol=0,
            max_iter=num_iterations,
            init_params="random",
            weights_init=np.full(K, 1 / K),
            means_init=x[np.arange(K) * 7].astype(float),
            precisions_init=precisions[covariance],
        )
        begin = time.perf_counter()
        mixture.fit(x)
        return time.perf_counter() - begin

    warnings.filterwarnings("ignore", message=".*did not converge")
    short, long = 2, 5
    return min((seconds(long) - seconds(short)) / (long - short) for _ in range(max(1, repeats // 5)))


def rate(dtype, size=2000, repeats=10):
    """Operations a second of a large square product."""
    matrix = torch.randn(size, size, dtype=dtype)
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        matrix @ matrix
        seconds.append(time.perf_counter() - begin)
    return 2 * size**3 / min(seconds)


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def work(who, N, D, K, covariance, dtype, repeats):
    x = data(N, D, K, dtype)
    before = peak()
    seconds = {"ours": ours, "sklearn": sklearn}[who](x, K, covariance, repeats)
    return {"seconds": seconds, "memory": peak() - before}


def in_a_fresh_process(arguments, *task):
    command = [sys.executable, __file__, "--threads", str(arguments.threads), "--repeats", str(arguments.repeats)]
    output = subprocess.run([*command, "--work", json.dumps(task)], check=True, capture_output=True, text=True)
    return json.loads(output.stdout)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--work", type=json.loads)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.work:
        *task, dtype = arguments.work
        print(json.dumps(work(*task, getattr(torch, dtype), arguments.repeats)))
        return

    rates = {name: rate(getattr(torch, name)) for name in ("float64", "float32")}
    for name, value in rates.items():
        print(f"{name}: {value / 1e9:.0f}e9 operations a second in a matrix product")
    print(f"{'N':>8} {'D':>3} {'K':>3} {'covariance':10} {'dtype':8} {'ours s':>8} {'sklearn s':>9} ", end="")
    print(f"{'ratio':>6} {'ours MB':>8} {'sklearn MB':>10} {'of the rate':>11}")
    for N, D, K, covariance in PROBLEMS:
        for dtype in rates:
            here, there = (
                in_a_fresh_process(arguments, who, N, D, K, covariance, dtype) for who in ("ours", "sklearn")
            )
            share = f"{4 * N * K * D**2 / here['seconds'] / rates[dtype]:.0%}" if covariance == "full" else ""
            print(
                f"{N:8} {D:3} {K:3} {covariance:10} {dtype:8} {here['seconds']:8.3f} {there['seconds']:9.3f} ", end=""
            )
            print(
                f"{there['seconds'] / here['seconds']:6.1f} {here['memory']:8.0f} {there['memory']:10.0f} {share:>11}"
            )

    x = data(1000, 4, 5, torch.float64)
    one, ten = (ours(x, 5, "full", 20 * arguments.repeats, runs) for runs in ((), (10,)))
    print(
        f"1000 rows, D=4, K=5: {1e6 * one:.0f} us for one run, {1e6 * ten:.0f} us for ten in a batch: {ten / one:.1f}"
    )


if __name__ == "__main__":
    main()
