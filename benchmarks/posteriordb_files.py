"""Data and reference draws of posteriordb's posteriors.

A folder holds one of them: `data.json`, and `draws_thinned.npz` with draws by name, such as `beta[1]`.
"""

import json
import re
from pathlib import Path

import numpy as np


def read(folder, name):
    """The data by name, and the reference draws by site, `[S, ...]`."""
    (path,) = Path(folder).glob(f"{name}-*")
    data = json.loads((path / "data.json").read_text())
    with np.load(path / "draws_thinned.npz", allow_pickle=False) as file:
        held = {key: file[key] for key in file.files}
    flat_names, draws = list(map(str, held["names"])), held["draws"]
    reference = {}
    for column, full in enumerate(flat_names):
        reference.setdefault(re.sub(r"\[.*", "", full), []).append(draws[:, column])
    stacked = {
        key: value[0] if len(value) == 1 and f"{key}[1]" not in flat_names else np.stack(value, -1)
        for key, value in reference.items()
    }
    return data, stacked
