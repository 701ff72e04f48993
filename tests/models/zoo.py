"""Small models as people write them, of every framework and family: what `test_models.py` trains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen, nnx

N = 20
random = np.random.default_rng(0)
ROWS = random.normal(size=(N, 4)).astype(np.float32)
LABELS = (ROWS[:, 0] + ROWS[:, 1] > 0).astype(np.int32)
VALUES = np.tanh(ROWS[:, :1] - ROWS[:, 1:2]).astype(np.float32)
IMAGES = random.normal(size=(N, 6, 6, 1)).astype(np.float32)
TOKENS = random.integers(0, 5, (N, 6)).astype(np.int32)
SERIES = np.cumsum(random.normal(size=(N, 6, 2)), 1).astype(np.float32)
EDGES = ((s := random.random((5, 5)) < 0.5) | s.T | np.eye(5, dtype=bool)).astype(np.float32)
GRAPHS = random.normal(size=(N, 5, 3)).astype(np.float32)
PAIRS = random.integers(0, 6, (N, 2)).astype(np.int32)


@dataclass(frozen=True)
class Case:
    """A person's model and loss; what is measured is the loss, or what `metrics` says."""

    model: Callable[..., Any]
    loss: Callable[..., Any]
    data: Any
    metrics: Callable[..., Any] | None = None
    needs: tuple[str, ...] = ()  # modules of other libraries
    tolerance: float = 2e-5


def cross_entropy(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def classify(model, batch):
    return cross_entropy(model(batch[0]), batch[1])


def accuracy(model, batch):
    return {"loss": classify(model, batch), "accuracy": (model(batch[0]).argmax(-1) == batch[1]).mean()}


def regress(model, batch):
    return ((model(batch[0]) - batch[1]) ** 2).mean()


# ---- Flax nnx ------------------------------------------------------------------------------------------


class MLP(nnx.Module):
    def __init__(self, rngs, norm=False, drop=0.0, inside=4, out=2):
        self.first, self.last = nnx.Linear(inside, 8, rngs=rngs), nnx.Linear(8, out, rngs=rngs)
        self.norm = nnx.LayerNorm(8, rngs=rngs) if norm else lambda x: x
        self.drop = nnx.Dropout(drop, rngs=rngs)

    def __call__(self, x):
        return self.last(self.drop(nnx.relu(self.norm(self.first(x)))))


class Residual(nnx.Module):
    def __init__(self, rngs):
        self.blocks = nnx.List([nnx.Linear(4, 4, rngs=rngs) for _ in range(3)])
        self.head = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        for block in self.blocks:
            x = x + nnx.gelu(block(x))
        return self.head(x)


class ConvNet(nnx.Module):
    def __init__(self, rngs, norm=False):
        self.conv = nnx.Conv(1, 4, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs) if norm else nnx.LayerNorm(4, rngs=rngs)
        self.head = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        h = nnx.max_pool(nnx.relu(self.norm(self.conv(x))), (2, 2), (2, 2))
        return self.head(h.mean((1, 2)))


class Separable(nnx.Module):
    def __init__(self, rngs):
        self.widen = nnx.Conv(1, 4, (1, 1), rngs=rngs)
        self.depth = nnx.Conv(4, 4, (3, 3), feature_group_count=4, strides=2, rngs=rngs)
        self.head = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.silu(self.depth(self.widen(x))).mean((1, 2)))


class Recurrent(nnx.Module):
    def __init__(self, rngs, cell=nnx.GRUCell):
        self.rnn = nnx.RNN(cell(2, 5, rngs=rngs))
        self.head = nnx.Linear(5, 2, rngs=rngs)

    def __call__(self, x):
        return self.head(self.rnn(x)[:, -1])


class Block(nnx.Module):
    def __init__(self, rngs):
        self.attention = nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs)
        self.a, self.b = nnx.LayerNorm(8, rngs=rngs), nnx.LayerNorm(8, rngs=rngs)
        self.up, self.down = nnx.Linear(8, 16, rngs=rngs), nnx.Linear(16, 8, rngs=rngs)

    def __call__(self, x, mask=None):
        x = x + self.attention(self.a(x), mask=mask)
        return x + self.down(nnx.gelu(self.up(self.b(x))))


class GPT(nnx.Module):
    def __init__(self, rngs):
        self.tokens, self.places = nnx.Embed(5, 8, rngs=rngs), nnx.Embed(6, 8, rngs=rngs)
        self.block, self.norm = Block(rngs), nnx.LayerNorm(8, rngs=rngs)

    def __call__(self, x):
        h = self.tokens(x) + self.places(jnp.arange(x.shape[1]))
        return self.tokens.attend(self.norm(self.block(h, nnx.make_causal_mask(x))))


class ViT(nnx.Module):
    def __init__(self, rngs):
        self.patch = nnx.Conv(1, 8, (3, 3), strides=3, rngs=rngs)
        self.token = nnx.Param(0.1 * jax.random.normal(rngs.params(), (1, 1, 8)))
        self.block, self.head = Block(rngs), nnx.Linear(8, 2, rngs=rngs)

    def __call__(self, x):
        h = self.patch(x).reshape(len(x), -1, 8)
        h = jnp.concatenate([jnp.broadcast_to(self.token[...], (len(x), 1, 8)), h], 1)
        return self.head(self.block(h)[:, 0])


class VAE(nnx.Module):
    def __init__(self, rngs):
        self.inside, self.outside = nnx.Linear(4, 6, rngs=rngs), nnx.Linear(3, 4, rngs=rngs)

    def __call__(self, x, key):
        mean, log_std = jnp.split(self.inside(x), 2, -1)
        z = mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape)
        return self.outside(z), mean, log_std


def elbo(model, batch, key):
    out, mean, log_std = model(batch[0], key)
    divergence = 0.5 * (jnp.exp(2 * log_std) + mean**2 - 1 - 2 * log_std).sum(-1)
    return (((out - batch[0]) ** 2).sum(-1) + divergence).mean()


class UNet(nnx.Module):
    def __init__(self, rngs):
        self.down, self.middle = nnx.Conv(1, 4, (3, 3), rngs=rngs), nnx.Conv(4, 4, (3, 3), rngs=rngs)
        self.up = nnx.ConvTranspose(4, 4, (2, 2), strides=(2, 2), rngs=rngs)
        self.last = nnx.Conv(8, 1, (1, 1), rngs=rngs)

    def __call__(self, x):
        wide = nnx.relu(self.down(x))
        low = nnx.relu(self.middle(nnx.avg_pool(wide, (2, 2), (2, 2))))
        return self.last(jnp.concatenate([wide, self.up(low)], -1))


def denoise(model, batch, key):
    x = batch[0]
    return ((model(x + 0.3 * jax.random.normal(key, x.shape)) - x) ** 2).mean()


class Experts(nnx.Module):
    def __init__(self, rngs):
        self.gate = nnx.Linear(4, 3, rngs=rngs)
        self.experts = nnx.vmap(lambda rngs: nnx.Linear(4, 2, rngs=rngs), in_axes=0)(rngs.fork(split=3))

    def __call__(self, x):
        outs = nnx.vmap(lambda expert, x: expert(x), in_axes=(0, None))(self.experts, x)
        return jnp.einsum("be,ebo->bo", nnx.softmax(self.gate(x)), outs)


# ---- Flax linen ----------------------------------------------------------------------------------------


class LinenMLP(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.Dense(2)(linen.tanh(linen.Dense(8)(x)))


class LinenConv(linen.Module):
    @linen.compact
    def __call__(self, x, train):
        h = linen.BatchNorm(use_running_average=not train, momentum=0.9)(linen.Conv(4, (3, 3))(x))
        h = linen.Dropout(0.2, deterministic=not train)(linen.relu(h).mean((1, 2)))
        return linen.Dense(2)(h)


class LinenLSTM(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.Dense(2)(linen.RNN(linen.OptimizedLSTMCell(4))(x)[:, -1])


class LinenAttention(linen.Module):
    @linen.compact
    def __call__(self, x):
        h = linen.Embed(5, 8)(x)
        h = h + linen.MultiHeadDotProductAttention(2)(linen.LayerNorm()(h))
        return linen.Dense(2)(h.mean(1))


# ---- pytrees -------------------------------------------------------------------------------------------


def normals(key, **shapes):
    keys = jax.random.split(key, len(shapes))
    return {name: 0.4 * jax.random.normal(k, shape) for k, (name, shape) in zip(keys, shapes.items(), strict=True)}


def graph_loss(p, batch):
    degrees = EDGES.sum(1)
    spread = EDGES / jnp.sqrt(degrees[:, None] * degrees)
    h = jax.nn.relu(spread @ batch[0] @ p["a"])
    return cross_entropy((spread @ h @ p["b"]).mean(1), batch[1])


def pinn_loss(p, batch):
    """u'' = -u on rows of points, u(0) = 0, u'(0) = 1."""

    def u(t):
        return (jnp.tanh(t * p["w"] + p["b"]) @ p["v"]).sum()

    second = jax.vmap(jax.grad(jax.grad(u)))(batch[0][:, 0])
    return ((second + jax.vmap(u)(batch[0][:, 0])) ** 2).mean() + u(0.0) ** 2 + (jax.grad(u)(0.0) - 1) ** 2


def ode_loss(p, batch):
    def f(x):
        return jnp.tanh(x @ p["a"]) @ p["b"]

    def runge_kutta(x, _):
        k1 = f(x)
        k2 = f(x + 0.05 * k1)
        k3 = f(x + 0.05 * k2)
        k4 = f(x + 0.1 * k3)
        return x + 0.1 / 6 * (k1 + 2 * k2 + 2 * k3 + k4), None

    x, _ = jax.lax.scan(runge_kutta, batch[0], None, 4)
    return ((x[:, :1] - batch[1]) ** 2).mean()


def factor_loss(p, batch):
    rows, columns = p["rows"][batch[0][:, 0]], p["columns"][batch[0][:, 1]]
    return (((rows * columns).sum(-1) - batch[1][:, 0]) ** 2).mean()


def coupling_loss(p, batch):
    """The negative log-likelihood of two affine couplings."""
    x, log_det = batch[0], 0.0
    for name in ("a", "b"):
        left, right = jnp.split(x, 2, -1)
        shift, scale = jnp.split(jnp.tanh(left @ p[name]) @ p[f"{name}2"], 2, -1)
        x = jnp.concatenate([right * jnp.exp(scale) + shift, left], -1)
        log_det = log_det + scale.sum(-1)
    return (0.5 * (x**2).sum(-1) - log_det).mean()


def contrast_loss(p, batch, key):
    one, other = (batch[0] + 0.1 * jax.random.normal(k, batch[0].shape) for k in jax.random.split(key))
    z, w = (jnp.tanh(v @ p["a"]) @ p["b"] for v in (one, other))
    z, w = (v / jnp.linalg.norm(v, axis=-1, keepdims=True) for v in (z, w))
    return cross_entropy(z @ w.T / 0.5, jnp.arange(len(z)))


def set_loss(p, batch):
    return cross_entropy(jax.nn.relu(batch[0] @ p["each"]).sum(1) @ p["all"], batch[1])


def hyper_loss(p, batch):
    weights = (jnp.tanh(batch[0] @ p["a"]) @ p["b"]).reshape(-1, 4, 2)
    return cross_entropy(jnp.einsum("bi,bio->bo", batch[0], weights), batch[1])


def state_space_loss(p, batch):
    """A diagonal linear recurrence, by an associative scan."""
    decay = jax.nn.sigmoid(p["decay"])
    inputs = batch[0] @ p["in"]

    def joined(one, other):
        return one[0] * other[0], other[0] * one[1] + other[1]

    _, h = jax.lax.associative_scan(joined, (jnp.broadcast_to(decay, inputs.shape), inputs), axis=1)
    return cross_entropy(h[:, -1] @ p["out"], batch[1])


def quantile_loss(p, batch):
    error = batch[1] - (jnp.tanh(batch[0] @ p["a"]) @ p["b"])
    level = jnp.array([0.1, 0.5, 0.9])
    return jnp.maximum(level * error, (level - 1) * error).mean()


def fourier_loss(p, batch):
    angles = batch[0] @ p["frequencies"]
    return ((jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1) @ p["out"] - batch[1]) ** 2).mean()


def triplet_loss(p, batch):
    z = batch[0] @ p["w"]
    near, far = ((z - jnp.roll(z, shift, 0)) ** 2 for shift in (1, 2))
    return jax.nn.softplus(near.sum(-1) - far.sum(-1)).mean()


# ---- other libraries -----------------------------------------------------------------------------------


def equinox_mlp(hp, key):
    import equinox as eqx

    return eqx.nn.MLP(4, 2, 6, 1, key=key)


def equinox_conv(hp, key):
    import equinox as eqx

    a, b = jax.random.split(key)
    return eqx.nn.Sequential(
        [
            eqx.nn.Conv2d(1, 3, 3, key=a), eqx.nn.Lambda(jax.nn.relu), eqx.nn.Lambda(lambda x: x.mean((1, 2))),
            eqx.nn.Linear(3, 2, key=b),
        ]
    )  # fmt: skip


def mapped(model, batch):
    return cross_entropy(jax.vmap(model)(batch[0]), batch[1])


def mapped_images(model, batch):
    return cross_entropy(jax.vmap(model)(jnp.moveaxis(batch[0], -1, 1)), batch[1])


def haiku_mlp(hp):
    import haiku as hk

    return hk.transform(lambda x: hk.nets.MLP([6, 2])(x))


def haiku_conv(hp):
    import haiku as hk

    def forward(x):
        return hk.Linear(2)(jax.nn.relu(hk.Conv2D(3, 3)(x)).mean((1, 2)))

    return hk.without_apply_rng(hk.transform(forward))


def flow(hp, key):
    from flowjax.distributions import StandardNormal
    from flowjax.flows import coupling_flow

    return coupling_flow(key, base_dist=StandardNormal((4,)), flow_layers=1, nn_width=4, nn_depth=1)


def flow_loss(model, batch):
    from paramax import unwrap

    return -unwrap(model).log_prob(batch[0]).mean()


def mixture_loss(p, batch):
    import distrax

    h = jnp.tanh(batch[0] @ p["a"])
    components = distrax.Normal(h @ p["mean"], jax.nn.softplus(h @ p["std"]) + 0.1)
    mixture = distrax.MixtureSameFamily(distrax.Categorical(logits=h @ p["logits"]), components)
    return -mixture.log_prob(batch[1][:, 0]).mean()


def tree(**shapes):
    return lambda hp, key: normals(key, **shapes)


ROW, VALUE, IMAGE, SERIE = (ROWS, LABELS), (ROWS, VALUES), (IMAGES, LABELS), (SERIES, LABELS)
MODELS = {
    "nnx MLP": Case(lambda hp, rngs: MLP(rngs), classify, ROW, accuracy),
    "nnx MLP with layer norm": Case(lambda hp, rngs: MLP(rngs, norm=True), classify, ROW),
    "nnx MLP with dropout": Case(lambda hp, rngs: MLP(rngs, drop=0.3), classify, ROW, accuracy),
    "nnx residual": Case(lambda hp, rngs: Residual(rngs), classify, ROW, accuracy),
    "nnx convolutions": Case(lambda hp, rngs: ConvNet(rngs), classify, IMAGE, accuracy),
    "nnx batch norm": Case(lambda hp, rngs: ConvNet(rngs, norm=True), classify, IMAGE, accuracy),
    "nnx separable convolutions": Case(lambda hp, rngs: Separable(rngs), classify, IMAGE),
    "nnx GRU": Case(lambda hp, rngs: Recurrent(rngs), classify, SERIE),
    "nnx LSTM": Case(lambda hp, rngs: Recurrent(rngs, nnx.LSTMCell), classify, SERIE),
    "nnx GPT": Case(lambda hp, rngs: GPT(rngs), lambda m, b: cross_entropy(m(b[0])[:, :-1], b[0][:, 1:]), (TOKENS,)),
    "nnx ViT": Case(lambda hp, rngs: ViT(rngs), classify, IMAGE),
    "nnx VAE": Case(lambda hp, rngs: VAE(rngs), elbo, (ROWS,)),
    "nnx U-Net": Case(lambda hp, rngs: UNet(rngs), denoise, (IMAGES,)),
    "nnx experts": Case(lambda hp, rngs: Experts(rngs), classify, ROW),
    "linen MLP": Case(lambda hp, rngs: LinenMLP(), classify, ROW, accuracy),
    "linen batch norm and dropout": Case(
        lambda hp, rngs: LinenConv(), lambda m, b: cross_entropy(m(b[0], True), b[1]), IMAGE,
        lambda m, b: {"loss": cross_entropy(m(b[0], False), b[1])},
    ),
    "linen LSTM": Case(lambda hp, rngs: LinenLSTM(), classify, SERIE),
    "linen attention": Case(lambda hp, rngs: LinenAttention(), classify, (TOKENS, LABELS)),
    "graph network": Case(tree(a=(3, 6), b=(6, 2)), graph_loss, (GRAPHS, LABELS)),
    "physics-informed": Case(tree(w=(8,), b=(8,), v=(8, 1)), pinn_loss, (ROWS,)),
    "neural ODE": Case(tree(a=(4, 6), b=(6, 4)), ode_loss, VALUE),
    "matrix factors": Case(tree(rows=(6, 3), columns=(6, 3)), factor_loss, (PAIRS, VALUES)),
    "coupling flow": Case(tree(a=(2, 4), a2=(4, 4), b=(2, 4), b2=(4, 4)), coupling_loss, (ROWS,)),
    "contrastive": Case(tree(a=(4, 6), b=(6, 3)), contrast_loss, (ROWS,)),
    "deep set": Case(tree(each=(3, 5), all=(5, 2)), set_loss, (GRAPHS, LABELS)),
    "hypernetwork": Case(tree(a=(4, 5), b=(5, 8)), hyper_loss, ROW),
    "state space": Case(tree(decay=(4,), **{"in": (2, 4), "out": (4, 2)}), state_space_loss, SERIE),
    "quantiles": Case(tree(a=(4, 5), b=(5, 3)), quantile_loss, VALUE),
    "Fourier features": Case(tree(frequencies=(4, 5), out=(10, 1)), fourier_loss, VALUE),
    "triplets": Case(tree(w=(4, 3)), triplet_loss, (ROWS,)),
    "Equinox MLP": Case(equinox_mlp, mapped, ROW, needs=("equinox",)),
    "Equinox convolutions": Case(equinox_conv, mapped_images, IMAGE, needs=("equinox",)),
    "haiku MLP": Case(haiku_mlp, classify, ROW, needs=("haiku",)),
    "haiku convolutions": Case(haiku_conv, classify, IMAGE, needs=("haiku",)),
    "flowjax coupling flow": Case(flow, flow_loss, (ROWS,), needs=("equinox", "flowjax")),
    "distrax mixture": Case(
        tree(a=(4, 5), mean=(5, 3), std=(5, 3), logits=(5, 3)), mixture_loss, VALUE, needs=("distrax",)
    ),
}  # fmt: skip
