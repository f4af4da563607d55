"""Nine posteriors of posteriordb: how far the guides by name are from their reference draws.

    python benchmarks/posteriors.py FOLDER [--names kidiq ...] [--guides mean_field full_rank flow] [--steps 2000]

The folder has one of posteriordb's posteriors in each of its folders: see `posteriordb_models.py`. Errors are the
largest of a mean, in posterior standard deviations, and of a standard deviation, over 10,000 draws of the guide.
"""

import argparse
import time

import torch
from posteriordb_models import MODELS, TUNED, load

import pyro_lvm as lvm


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--names", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--guides", nargs="+", default=["mean_field", "full_rank", "flow"])
    parser.add_argument("--steps", type=int, default=2_000)
    args = parser.parse_args()
    torch.set_num_threads(1)

    def falling(optimizer):
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.steps // 100)

    print(f"{'posterior':20} {'guide':12} {'mean (sd)':>10} {'sd':>6} {'seconds':>8}  worst")
    for name in args.names:
        model, data, reference = load(args.folder, name)
        for guide in args.guides:
            began = time.perf_counter()
            options = {"num_steps": args.steps, "optim": 0.05, "scheduler": falling, "progress": False}
            result = lvm.fit(model, guide, *data, **options)
            seconds = time.perf_counter() - began
            found = lvm.against(result, reference)
            print(
                f"{name + ('' if name in TUNED else ' (untouched)'):20} {guide:12} {found.largest_mean_error:10.2f} "
                f"{found.largest_sd_error:6.0%} {seconds:8.1f}  {found.worst}",
                flush=True,
            )


if __name__ == "__main__":
    main()
