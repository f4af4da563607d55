"""Remakes the pictures of the README and of "Getting started" by running their examples: python docs/pictures.py"""

import os
import re
from pathlib import Path

os.environ["MPLBACKEND"] = "Agg"

from matplotlib import pyplot as plt

DOCS = Path(__file__).parent


def run(page, *names):
    """Run a page's examples, and save their figures under the names."""
    namespace = {}
    for example in re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE):
        exec(example, namespace)
    for number, name in zip(plt.get_fignums(), names, strict=True):
        plt.figure(number).savefig(DOCS / "_static" / f"{name}.png", dpi=110)
    plt.close("all")


run(DOCS.parent / "README.md", "readme")
run(DOCS / "getting_started.md", "losses", "intervals")
