"""The rows of the table: data and starting values as NumPy arrays, the same for every library."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Row:
    """One problem. ``make`` returns the data, in the order of the model's arguments, and the start by name."""

    key: str
    title: str
    make: Callable[[], tuple[Arrays, Arrays]]
    check_steps: int
    """Steps of the run whose last quarter is compared between the columns; a multiple of four."""
    batch_size: int | None = None


def breast_cancer():
    from sklearn.datasets import load_breast_cancer

    X, y = load_breast_cancer(return_X_y=True)
    return {"X": _floats((X - X.mean(0)) / X.std(0)), "y": _floats(y)}, {"w": np.zeros(30), "b": np.zeros(())}


def eight_schools():
    y, sigma = [28, 8, -3, 7, -1, 1, 18, 12], [15, 10, 16, 11, 9, 11, 10, 18]
    return {"y": _floats(y), "sigma": _floats(sigma)}, {"mu": np.zeros(()), "tau": np.ones(()), "raw": np.zeros(8)}


def mixture(num_rows, num_features, num_components):
    def make():
        rng = np.random.default_rng(0)
        centres = 3 * rng.standard_normal((num_components, num_features))
        z = rng.integers(num_components, size=num_rows)
        x = centres[z] + rng.standard_normal((num_rows, num_features))
        start = {
            "weights": np.full(num_components, 1 / num_components),
            "locs": centres + 0.5 * rng.standard_normal(centres.shape),
            "scales": np.full(centres.shape, 1.5),
        }
        return {"x": _floats(x)}, start

    return make


def radon():
    """Like the radon survey: 85 counties of very different sizes, a floor for each house."""
    rng = np.random.default_rng(0)
    sizes = rng.dirichlet(np.full(85, 0.8))
    group = np.concatenate([np.arange(85), rng.choice(85, size=900 - 85, p=sizes)])
    floor = _floats(rng.random(900) < 0.2)
    intercepts, slopes = rng.normal(1.5, 0.35, 85), rng.normal(-0.65, 0.25, 85)
    y = intercepts[group] + slopes[group] * floor + rng.normal(0, 0.75, 900)
    start = {name: np.zeros(()) for name in ("mu_a", "mu_b")} | {name: np.zeros(85) for name in ("a", "b")}
    start |= {name: np.ones(()) for name in ("sigma_a", "sigma_b", "sigma")}
    return {"group": group, "floor": floor, "y": _floats(y)}, start


def digits():
    from sklearn.datasets import load_digits

    x = load_digits().data[:1792] > 7.5  # 14 full batches
    return {"x": _floats(x)}, networks(64, 128, 8)


def large_digits():
    """Digits of 28 x 28 pixels: 8 x 8 ones, each pixel three by three, in a margin, and one pixel in 50 flipped."""
    from sklearn.datasets import load_digits

    rng = np.random.default_rng(0)
    small = load_digits().images > 7.5
    small = small[rng.integers(len(small), size=10_240)]  # 40 full batches
    x = np.pad(small.repeat(3, 1).repeat(3, 2), ((0, 0), (2, 2), (2, 2)))
    x = (x ^ (rng.random(x.shape) < 0.02)).reshape(len(x), 784)
    return {"x": _floats(x)}, networks(784, 400, 20)


def networks(num_features, hidden, num_latents):
    """Weights ``[in, out]`` and biases of encoder and decoder, drawn as torch draws those of ``nn.Linear``."""
    rng = np.random.default_rng(0)
    sizes = {"encoder": (num_features, hidden, 2 * num_latents), "decoder": (num_latents, hidden, num_features)}
    start = {}
    for name, (inputs, middle, outputs) in sizes.items():
        for layer, (m, n) in enumerate([(inputs, middle), (middle, outputs)]):
            bound = m**-0.5
            start[f"{name}.{layer}.weight"] = rng.uniform(-bound, bound, (m, n))
            start[f"{name}.{layer}.bias"] = rng.uniform(-bound, bound, n)
    return start


def load(row: Row) -> tuple[Arrays, Arrays]:
    """Data and start, all floats in float32."""
    data, start = row.make()
    return data, {name: _floats(value) for name, value in start.items()}


def _floats(values):
    return np.asarray(values, dtype=np.float32)


ROWS = {
    row.key: row
    for row in (
        Row("a", "logistic regression 569 x 30, mean-field", breast_cancer, 4_000),
        Row("b", "logistic regression 569 x 30, full-rank", breast_cancer, 4_000),
        Row("c", "logistic regression 569 x 30, IAF", breast_cancer, 12_000),
        Row("d", "eight schools, mean-field", eight_schools, 6_000),
        Row("e", "mixture 500 x 2, K = 3, enumerated", mixture(500, 2, 3), 2_000),
        Row("f", "mixture 10,000 x 8, K = 16, enumerated", mixture(10_000, 8, 16), 200),
        Row("g", "hierarchical, 85 groups, 900 rows, mean-field", radon, 4_000),
        Row("h", "VAE 64 pixels, batches of 128", digits, 1_400, 128),
        Row("i", "VAE 784 pixels, batches of 256", large_digits, 600, 256),
    )
}
