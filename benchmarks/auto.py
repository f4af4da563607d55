"""Nine posteriors of posteriordb by guide="auto" at its defaults: errors, seconds, verdict, and the way.

    python benchmarks/auto.py FOLDER [--names kidiq ...] [--seed 0]

The folder has one of posteriordb's posteriors in each of its folders: see `posteriordb_files.py`. Errors are the
largest of a mean, in posterior standard deviations, and of a standard deviation, over 10,000 draws. A fit is bad if
they are above 0.25 and 20%; the last lines count what is within 0.1 and 10%, and what the verdict calls good.
"""

import argparse
import time
from collections import Counter

import torch
from posteriordb_models import MODELS, TUNED, load

import pyro_lvm as lvm
from pyro_lvm.verdict.marginals import MOST_MEAN_ERROR, MOST_SD_ERROR

MEAN_ERROR, SD_ERROR = 0.1, 0.1


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--names", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    close, counts = 0, {False: Counter(), True: Counter()}
    for name in args.names:
        model, data, reference = load(args.folder, name)
        began = time.perf_counter()
        result = lvm.fit(model, "auto", *data, seed=args.seed, progress=False)
        seconds = time.perf_counter() - began
        verdict = lvm.diagnose(result).verdict
        found = lvm.against(result, reference, num_draws=10_000)
        bad = found.largest_mean_error > MOST_MEAN_ERROR or found.largest_sd_error > MOST_SD_ERROR
        close += found.largest_mean_error <= MEAN_ERROR and found.largest_sd_error <= SD_ERROR
        counts[bad][verdict] += 1
        print(
            f"{name + ('' if name in TUNED else ' (untouched)'):34} mean {found.largest_mean_error:5.3f} sd, sd "
            f"{found.largest_sd_error:5.1%} ({found.worst}), {seconds:4.0f} s, {result.climb.guide}: {verdict}"
        )
        for step in result.climb.steps:
            print(f"    {step}", flush=True)
    print(f"\n{close} of {len(args.names)} have every mean within {MEAN_ERROR} sd and every sd within {SD_ERROR:.0%}")
    for bad in (False, True):
        verdicts = ", ".join(f"{count} {verdict}" for verdict, count in counts[bad].items()) or "there are none"
        print(f"{'bad' if bad else 'good'} fits are called: {verdicts}")


if __name__ == "__main__":
    main()
