"""Nine posteriors of posteriordb: what `diagnose` says of the guides by name, beside the errors that they have.

    python benchmarks/posteriors.py FOLDER [--names kidiq ...] [--guides mean_field full_rank flow] [--steps 10000]

The folder has one of posteriordb's posteriors in each of its folders: see `posteriordb_files.py`. Errors are the
largest of a mean, in posterior standard deviations, and of a standard deviation, over 10,000 draws of the guide. A fit
is bad if they are above 0.25 and 20%. The last lines count what the verdict calls good.
"""

import argparse
import time
from collections import Counter

import torch
from posteriordb_models import MODELS, TUNED, load

import pyro_lvm as lvm
from pyro_lvm.verdict.marginals import MOST_MEAN_ERROR, MOST_SD_ERROR

LEARNING_RATES = {"flow": 0.01}  # 0.05 of the others


def fitted(model, guide, data, num_steps):
    def falling(optimizer):
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)

    elbo = lvm.elbo.Trace_ELBO(num_particles=4)
    options = {"elbo": elbo, "optim": LEARNING_RATES.get(guide, 0.05), "scheduler": falling, "progress": False}
    return lvm.fit(model, guide, *data, num_steps=num_steps, **options)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--names", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--guides", nargs="+", default=["mean_field", "full_rank", "flow"])
    parser.add_argument("--steps", type=int, default=10_000)
    args = parser.parse_args()
    torch.set_num_threads(1)
    counts = {False: Counter(), True: Counter()}
    for guide in args.guides:
        print(f"\n{guide:34} {'mean (sd)':>9} {'sd':>6} {'k-hat':>6} {'fit':>6} {'check':>6}  fit is   verdict   worst")
        for name in args.names:
            model, data, reference = load(args.folder, name)
            began = time.perf_counter()
            try:
                result = fitted(model, guide, data, args.steps)
            except lvm.NonFiniteError as error:
                print(f"{name:34} failed: {str(error).splitlines()[0]}")
                continue
            fit_seconds = time.perf_counter() - began
            report = lvm.diagnose(result)
            seconds = time.perf_counter() - began - fit_seconds
            found = lvm.against(result, reference)
            bad = found.largest_mean_error > MOST_MEAN_ERROR or found.largest_sd_error > MOST_SD_ERROR
            counts[bad][report.verdict] += 1
            print(
                f"{name + ('' if name in TUNED else ' (untouched)'):34} {found.largest_mean_error:9.2f} "
                f"{found.largest_sd_error:6.0%} {report.khat.value:6.2f} {fit_seconds:5.0f}s {seconds:5.0f}s  "
                f"{'bad ' if bad else 'good'}     {report.verdict:9} {found.worst}",
                flush=True,
            )
    print()
    for bad in (False, True):
        verdicts = ", ".join(f"{count} {verdict}" for verdict, count in counts[bad].items())
        print(f"{'bad' if bad else 'good'} fits are called: {verdicts}")


if __name__ == "__main__":
    main()
