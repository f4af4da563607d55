"""Seconds of an iteration of EM by `lvm.fit_em`, and by other packages in the same run.

    python benchmarks/em.py [--only mixtures restarts generic hmm factors topics] [--threads 2] [--repeats 3]

An iteration's seconds are the difference of a long fit and a short one from the same start, over the difference of
their iterations: the best of several, for a busy machine only adds to them. Every figure of a mixture comes from a
fresh process, whose peak memory beyond the data is printed too. All have the same data, start and dtype, and no
regularisation. What scikit-learn computes with is asked of its parameters after the fit; pomegranate keeps the dtype of
the parameters that it is given.

The rate is that of large square matrix products in the same dtype and on the same threads: an iteration with full
covariances takes 4 N K D^2 operations, two products that use no symmetry.
"""

import argparse
import json
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from em_models import (
    COLUMNS,
    DOCUMENTS,
    FACTORS,
    FEATURES,
    HMMS,
    LATENTS,
    LDAS,
    LENGTH,
    NUM_SEQUENCES,
    ROWS,
    STATES,
    TOPICS,
    VOCABULARY,
    corpus,
    factors,
    sequences,
)
from sklearn.mixture import GaussianMixture as SklearnMixture

import pyro_lvm as lvm

MIXTURES = ((200_000, 32, 16, "full"), (100_000, 64, 32, "full"), (1_000_000, 16, 16, "diag"))
GENERIC = ((200_000, 32, 16, "full"), (1_000_000, 16, 16, "diag"), (1_000, 4, 5, "full"), (1_000, 4, 5, "diag"))
DTYPES = ("float64", "float32")
SHORT, LONG = 2, 6


def centres(D, K, dtype):
    return 0.3 * torch.randn(K, D, generator=torch.Generator().manual_seed(0), dtype=dtype)


def data(N, D, K, dtype):
    generator, locs = torch.Generator().manual_seed(1), centres(D, K, dtype)
    x = torch.empty(N, D, dtype=dtype)
    for rows in x.split(10_000):  # a copy of the data would hide the memory of what follows
        rows.normal_(generator=generator).add_(locs[torch.randint(K, (len(rows),), generator=generator)])
    return x


def start(x, K):
    """Locs beside those of the data, so that no component is left with few rows; weights alike, covariances of one.

    Components overlap, so that no fit is done after a few iterations.
    """
    noise = torch.randn(K, x.shape[1], generator=torch.Generator().manual_seed(2), dtype=x.dtype)
    return centres(x.shape[1], K, x.dtype) + 0.5 * noise


def ours(x, K, covariance, num_iter, e_step="auto", num_restarts=1):
    torch.set_default_dtype(x.dtype)
    mixture = lvm.models.GaussianMixture(K, x.shape[1], covariance=covariance)
    mixture.locs = start(x, K)
    options = {"tol": 0, "max_iter": num_iter, "num_restarts": num_restarts, "e_step": e_step, "progress": False}
    begin = time.perf_counter()
    em = lvm.fit_em(mixture, x, **options)
    return time.perf_counter() - begin, float(em.objective[-1])


def generic(x, K, covariance, num_iter):
    return ours(x, K, covariance, num_iter, e_step="exact")


def sklearn(x, K, covariance, num_iter):
    rows, D = x.numpy(), x.shape[1]
    mixture = SklearnMixture(
        K,
        covariance_type=covariance,
        tol=0,
        reg_covar=0,
        max_iter=num_iter,
        init_params="random",
        weights_init=np.full(K, 1 / K, rows.dtype),
        means_init=start(x, K).numpy(),
        precisions_init=np.stack([np.eye(D, dtype=rows.dtype)] * K) if covariance == "full" else np.ones_like(rows[:K]),
    )
    warnings.filterwarnings("ignore", message=".*did not converge")
    begin = time.perf_counter()
    mixture.fit(rows)
    seconds = time.perf_counter() - begin
    assert mixture.means_.dtype == rows.dtype
    return seconds, float(mixture.score_samples(rows).sum(dtype=np.float64))


def pomegranate(x, K, covariance, num_iter):
    from pomegranate.distributions import Normal
    from pomegranate.gmm import GeneralMixtureModel

    D, dtype = x.shape[1], x.dtype
    spread = torch.eye(D, dtype=dtype) if covariance == "full" else torch.ones(D, dtype=dtype)
    components = [Normal(loc.clone(), spread.clone(), covariance_type=covariance) for loc in start(x, K)]
    mixture = GeneralMixtureModel(components, priors=torch.full((K,), 1 / K), tol=-torch.inf, max_iter=num_iter)
    begin = time.perf_counter()
    mixture.fit(x)
    seconds = time.perf_counter() - begin
    return seconds, float(mixture.log_probability(x).sum(dtype=torch.float64))


def chain(who, repeats):
    hmm, x = sequences()
    seconds, value = seconds_an_iteration(lambda n: HMMS[who](hmm, x, n), repeats, 2, 22)
    return {"seconds": seconds, "value": value}


def factor(who, repeats):
    x = factors()
    FACTORS[who](x[:2_000])
    peak()
    before = peak()
    runs = [FACTORS[who](x) for _ in range(repeats)]
    return {"seconds": min(seconds for seconds, _ in runs), "value": runs[0][1], "memory": peak() - before}


def topic(who, repeats):
    counts = corpus()
    LDAS[who](counts[:100], 1)
    runs = [(LDAS[who](counts, 2)[0], LDAS[who](counts, 7)) for _ in range(repeats)]
    return {"seconds": min((more[0] - less) / 5 for less, more in runs), "value": runs[0][1][1]}


WHO = {"ours": ours, "sklearn": sklearn, "pomegranate": pomegranate, "generic": generic}


def seconds_an_iteration(fit, repeats, short=SHORT, long=LONG):
    """Of a function that takes iterations and returns seconds and a log-likelihood, with that after the long fit."""
    fit(1)
    found = []
    for _ in range(repeats):
        less, more = fit(short), fit(long)
        found.append((more[0] - less[0]) / (long - short))
    return min(found), more[1]


def rate(dtype, size=2000, repeats=10):
    """Operations a second of a large square product."""
    matrix, seconds = torch.randn(size, size, dtype=dtype), []
    for _ in range(repeats):
        begin = time.perf_counter()
        matrix @ matrix
        seconds.append(time.perf_counter() - begin)
    return 2 * size**3 / min(seconds)


def peak():
    """The largest memory since it was last asked for, in MB."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    Path("/proc/self/clear_refs").write_text("5")
    return int(status["VmHWM"].split()[0]) / 1024


def work(who, N, D, K, covariance, dtype, repeats):
    small = data(10 * K * 7, D, K, dtype)
    WHO[who](small, K, covariance, 1)  # what a first fit imports is no memory of a fit
    x = data(N, D, K, dtype)
    peak()  # what came before does not count
    before = peak()
    short, long = (SHORT, LONG) if N > 10_000 else (10, 60)
    seconds, value = seconds_an_iteration(lambda n: WHO[who](x, K, covariance, n), repeats, short, long)
    return {"seconds": seconds, "value": value, "memory": peak() - before}


def in_a_fresh_process(arguments, *task):
    command = [sys.executable, __file__, "--threads", str(arguments.threads), "--repeats", str(arguments.repeats)]
    run = subprocess.run([*command, "--work", json.dumps(task)], check=False, capture_output=True, text=True)
    if run.returncode:
        print(f"{task[0]} failed: {run.stderr.strip().splitlines()[-1]}")
        return {"seconds": float("nan"), "value": float("nan"), "memory": float("nan")}
    return json.loads(run.stdout)


def mixtures(arguments):
    rates = {name: rate(getattr(torch, name)) for name in DTYPES}
    for name, value in rates.items():
        print(f"{name}: {value / 1e9:.0f}e9 operations a second in a matrix product")
    print(f"\n{'':32}{'seconds an iteration':^27}{'ratio to ours':^17}{'MB beyond the data':^22}", end="")
    print(f"{'of the':>9}{'relative':>10}")
    print(f"{'N':>8} {'D':>3} {'K':>3} {'cov':5}{'dtype':9}", end="")
    print(f"{'ours':>9}{'sklearn':>9}{'pomegr.':>9}{'sklearn':>9}{'pomegr.':>8}", end="")
    print(f"{'ours':>7}{'sklearn':>8}{'pomegr.':>8}{'rate':>9}{'difference':>11}")
    for N, D, K, covariance in MIXTURES:
        for dtype in DTYPES:
            own, skl, pom = (
                in_a_fresh_process(arguments, who, N, D, K, covariance, dtype)
                for who in ("ours", "sklearn", "pomegranate")
            )
            share = f"{4 * N * K * D**2 / own['seconds'] / rates[dtype]:.0%}" if covariance == "full" else ""
            apart = abs(own["value"] / skl["value"] - 1)
            print(f"{N:8} {D:3} {K:3} {covariance:5}{dtype:9}", end="")
            print("".join(f"{r['seconds']:9.3f}" for r in (own, skl, pom)), end="")
            print(f"{skl['seconds'] / own['seconds']:9.1f}{pom['seconds'] / own['seconds']:8.1f}", end="")
            print(f"{own['memory']:7.0f}{skl['memory']:8.0f}{pom['memory']:8.0f}{share:>9}{apart:11.0e}", flush=True)


def restarts(arguments):
    """Ten starts over one, in the same number of iterations."""
    x = data(1_000, 4, 5, torch.float64)
    one, ten = (min(ours(x, 5, "full", 100, num_restarts=n)[0] for _ in range(3 * arguments.repeats)) for n in (1, 10))
    print(f"1,000 x 4, K = 5, 100 iterations: {1e3 * one:.0f} ms from one start, {1e3 * ten:.0f} ms from ten, ", end="")
    print(f"{ten / one:.1f} times as long")


def generic_steps(arguments):
    """EM by rules found in the model over the steps that it brings along."""
    print(f"{'N':>8} {'D':>3} {'K':>3} {'cov':5}{'dtype':9}{'own steps':>10}{'found':>9}{'ratio':>7}")
    for N, D, K, covariance in GENERIC:
        for dtype in DTYPES:
            own, found = (
                in_a_fresh_process(arguments, who, N, D, K, covariance, dtype)["seconds"] for who in ("ours", "generic")
            )
            print(f"{N:8} {D:3} {K:3} {covariance:5}{dtype:9}{own:10.4f}{found:9.4f}{found / own:7.1f}", flush=True)


def chains(arguments):
    """Baum and Welch's algorithm, 20 iterations less those of a short fit."""
    print(f"{NUM_SEQUENCES} sequences x {LENGTH}, K = {STATES}, D = {FEATURES}: seconds an iteration, log-likelihood")
    _peers(arguments, "chain", HMMS, "{:.6f}")


def factor_models(arguments):
    """Whole fits from each one's own start to one log-likelihood: ours to a gain of 1e-10 a row, theirs of 1e-6."""
    print(f"{ROWS:,} x {COLUMNS}, {LATENTS} latents, float64: seconds of a fit, nats a row, MB beyond the data")
    _peers(arguments, "factor", FACTORS, "{:.6f}")


def topics(arguments):
    """Passes over the documents, the third to the seventh, and the perplexity after seven."""
    print(f"{DOCUMENTS:,} documents x {VOCABULARY:,} words, {TOPICS} topics: seconds a pass, perplexity")
    _peers(arguments, "topic", LDAS, "{:.1f}")


def _peers(arguments, task, who, form):
    first = None
    for name in who:
        run = in_a_fresh_process(arguments, task, name)
        first = first or run["seconds"]
        memory = f"{run['memory']:8.0f}" if "memory" in run else ""
        ratio = run["seconds"] / first
        print(f"{name:24}{run['seconds']:9.4f}{ratio:8.1f} times ours  {form.format(run['value'])}{memory}", flush=True)


TASKS = {"chain": chain, "factor": factor, "topic": topic}
SECTIONS = {
    "mixtures": mixtures,
    "restarts": restarts,
    "generic": generic_steps,
    "hmm": chains,
    "factors": factor_models,
    "topics": topics,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--work", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.work:
        name, *task = arguments.work
        if name in TASKS:
            found = TASKS[name](*task, arguments.repeats)
        else:
            *task, dtype = arguments.work
            found = work(*task, getattr(torch, dtype), arguments.repeats)
        print(json.dumps(found))
        return
    for name in arguments.only:
        SECTIONS[name](arguments)
        print()


if __name__ == "__main__":
    main()
