"""Does the best learning rate of a narrow network serve a wide one?  python experiments/width_transfer.py

One masked program trains widths from 16 to 256 under two parametrisations. Under the standard one Adam moves every
weight by the same rate, whatever the width. Under the maximal-update one (muP; Yang et al. 2021, Tensor Programs V,
table 3) a matrix that reads a hidden layer is moved by less, in proportion to 1 / width, and the best rate stays where
it is. The last layer begins at zero, as the paper advises, so the rates are all that differs; at the narrowest width
the two are the same.
"""

import jax
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

import vmaptune as vt

WIDTHS = (16, 32, 64, 128, 256)
NARROWEST = WIDTHS[0]

space = {
    "learning_rate": vt.loguniform(3e-4, 1.0),
    "width": vt.ordinal(WIDTHS),
    "mup": vt.ordinal([0, 1]),
}


class MLP(nnx.Module):
    def __init__(self, hp, rngs):
        width = vt.nn.size(hp, "width")
        self.first = vt.nn.Linear(64, width, rngs=rngs)
        self.second = vt.nn.Linear(width, width, rngs=rngs)
        self.third = vt.nn.Linear(width, width, rngs=rngs)
        self.last = vt.nn.Linear(width, 10, kernel_init=jax.nn.initializers.zeros, rngs=rngs)

    def __call__(self, x):
        for layer in (self.first, self.second, self.third):
            x = nnx.relu(layer(x))
        return self.last(x)


def model(hp, rngs):
    return MLP(hp, rngs)


def optimizer(hp, steps):
    share = (NARROWEST / hp.width) ** hp.mup

    def by_layer(updates, params=None):
        def scaled(path, update):
            name = jax.tree_util.keystr(path)
            return update * share if "kernel" in name and "first" not in name else update

        return jax.tree_util.tree_map_with_path(scaled, updates)

    return optax.chain(optax.adam(hp.learning_rate), optax.stateless(by_layer))


def loss(model, batch):
    x, y = batch
    return optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()


def data():
    digits = load_digits()
    x, y = (digits.data / 16).astype(np.float32), digits.target
    order = np.random.default_rng(0).permutation(len(x))
    train, valid = np.split(order, [1437])
    return vt.Data(train=(x[train], y[train]), valid=(x[valid], y[valid]))


experiment = vt.Experiment(
    space=space, model=model, optimizer=optimizer, loss=loss, data=data, objective="loss", direction="minimize",
    batch_size=32, steps=100,
)  # fmt: skip


def best_rate(rates, losses):
    """Where the loss is least: the bottom of a parabola through the best third, on log scales."""
    kept = np.argsort(losses)[: max(3, len(losses) // 3)]
    x, y = np.log(np.asarray(rates)[kept]), np.log(np.asarray(losses)[kept])
    square, line, _ = np.polyfit(x, y, 2)
    least = -line / (2 * square) if square > 0 else x[y.argmin()]
    return float(np.exp(np.clip(least, x.min(), x.max())))


def best_rates(trials):
    """(width, mup) -> the best rate, from the search's trials that ended well."""
    found = {}
    for width in WIDTHS:
        for mup in (0, 1):
            mine = [
                (t.params["learning_rate"], t.value)
                for t in trials
                if t.of is None and (t.params["width"], t.params["mup"]) == (width, mup)
                and t.value is not None and np.isfinite(t.value)
            ]  # fmt: skip
            found[width, mup] = best_rate(*zip(*mine, strict=True))
    return found


def main():
    study = vt.run(experiment, trials=700, rounds=1, structure="masks", out="runs/width_transfer", force=True)
    found = best_rates(study.trials())
    print("| width | best rate, standard | best rate, muP |\n| --- | --- | --- |")
    for width in WIDTHS:
        print(f"| {width} | {found[width, 0]:.4f} | {found[width, 1]:.4f} |")


if __name__ == "__main__":
    main()
