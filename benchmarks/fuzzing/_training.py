"""Losses, optimisers and data of random cases."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

# ---- losses: (outputs [B, K], labels [B] int32, targets [B, K]) -> scalar -----------------------------------------


def _one_hot(out, label):
    return jax.nn.one_hot(label, out.shape[-1], dtype=out.dtype)


def _chosen(log_p, label):
    return jnp.take_along_axis(log_p, label[:, None], -1)[:, 0]


def _two_heads(out, label, target):
    if out.shape[-1] % 2:
        out = jnp.concatenate([out, -out], -1)
    first, second = jnp.split(out, 2, axis=-1)
    k = first.shape[-1]
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels
    return (cross_entropy(first, label % k) + cross_entropy(second, (label + 1) % k)).mean()


def _contrastive(out, label, target):
    a = out / jnp.sqrt((out * out).sum(-1, keepdims=True) + 1e-3)
    b = target[:, : out.shape[-1]]
    b = b / jnp.sqrt((b * b).sum(-1, keepdims=True) + 1e-3)
    scores = a @ b.T / 0.3
    own = jnp.diagonal(scores)
    return 0.5 * ((jax.nn.logsumexp(scores, 0) - own).mean() + (jax.nn.logsumexp(scores, 1) - own).mean())


def _masked(out, label, target):
    kept = (target[:, 0] > -0.3).astype(out.dtype)
    each = -_chosen(jax.nn.log_softmax(out), label)
    return (each * kept).sum() / jnp.maximum(kept.sum(), 1)


def _hardest(out, label, target):
    each = ((out - target) ** 2).mean(-1)
    return lax.top_k(each, max(1, len(each) // 2))[0].mean() + 0.1 * each.mean()


def _normal(out, label, target):
    half = max(1, out.shape[-1] // 2)
    mean, log_scale = out[:, :half], jnp.clip(out[:, -half:], -3, 3)
    return (0.5 * ((target[:, :half] - mean) * jnp.exp(-log_scale)) ** 2 + log_scale).mean()


def _correlation(out, label, target):
    a, b = out - out.mean(0), target - target.mean(0)
    return 1 - (a * b).sum() / jnp.sqrt(((a * a).sum() + 1e-2) * ((b * b).sum() + 1e-2))


def _focal(out, label, target):
    p = jnp.clip((jax.nn.softmax(out) * _one_hot(out, label)).sum(-1), 1e-4, 1.0)
    return (-((1 - p) ** 2) * jnp.log(p)).mean()


def _margin(out, label, target):
    own = jnp.take_along_axis(out, label[:, None], 1)
    return jnp.maximum(0, 1 + out - own).at[jnp.arange(len(out)), label].set(0).sum(-1).mean()


def _triplets(out, label, target):
    d = ((out[:, None] - out[None]) ** 2).sum(-1)
    same = label[:, None] == label[None]
    far = jnp.where(same, d, -jnp.inf).max(1)
    near = jnp.where(same, 1e3, d).min(1)
    return jax.nn.softplus(far - near).mean() + 0.01 * (out * out).mean()


LOSSES = {
    "cross entropy": lambda o, c, t: optax.softmax_cross_entropy_with_integer_labels(o, c).mean(),
    "one-hot cross entropy": lambda o, c, t: optax.softmax_cross_entropy(o, _one_hot(o, c)).mean(),
    "by index": lambda o, c, t: -jax.nn.log_softmax(o)[jnp.arange(len(o)), c].mean(),
    "logsumexp": lambda o, c, t: (jax.nn.logsumexp(o, -1) - _chosen(o, c)).mean(),
    "smoothed": lambda o, c, t: optax.softmax_cross_entropy(o, optax.smooth_labels(_one_hot(o, c), 0.1)).mean(),
    "mse": lambda o, c, t: ((o - t) ** 2).mean(),
    "sum of squares": lambda o, c, t: 0.1 * jnp.sum((o - t) ** 2) / len(o),
    "mae": lambda o, c, t: jnp.abs(o - t).mean(),
    "huber": lambda o, c, t: optax.huber_loss(o, t).mean(),
    "first output": lambda o, c, t: ((o[:, 0] - t[:, 0]) ** 2).mean(),
    "binary": lambda o, c, t: optax.sigmoid_binary_cross_entropy(o, (t > 0).astype(o.dtype)).mean(),
    "quantile": lambda o, c, t: jnp.maximum(0.3 * (t - o), -0.7 * (t - o)).mean(),
    "two heads": _two_heads, "contrastive": _contrastive, "masked": _masked, "hardest": _hardest, "normal": _normal,
    "correlation": _correlation, "focal": _focal, "margin": _margin, "triplets": _triplets,
}  # fmt: skip

# ---- optimisers: learning rate -> transformation; rates are of the size that suits them --------------------------

OPTIMIZERS = {
    "sgd": (0.05, optax.sgd),
    "momentum": (0.03, lambda r: optax.sgd(r, momentum=0.9)),
    "nesterov": (0.03, lambda r: optax.sgd(r, momentum=0.8, nesterov=True)),
    "adam": (0.01, lambda r: optax.adam(r, eps=1e-4)),
    "plain adam": (0.003, optax.adam),
    "adamw": (0.01, lambda r: optax.adamw(r, eps=1e-4, weight_decay=0.01)),
    "rmsprop": (0.005, lambda r: optax.rmsprop(r, eps=1e-4)),
    "adagrad": (0.05, lambda r: optax.adagrad(r)),
    "adafactor": (0.02, lambda r: optax.adafactor(r, min_dim_size_to_factor=4)),
    "muon": (0.02, lambda r: optax.contrib.muon(r)),
    "lion": (0.002, optax.lion),
    "lamb": (0.01, lambda r: optax.lamb(r, eps=1e-4)),
    "clipped": (0.1, lambda r: optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(r, momentum=0.5))),
    "clipped adam": (0.01, lambda r: optax.chain(optax.clip_by_global_norm(1.0), optax.adam(r, eps=1e-4))),
    "clipped by block": (0.1, lambda r: optax.chain(optax.clip_by_block_rms(0.1), optax.sgd(r))),
    "centralized": (0.05, lambda r: optax.chain(optax.centralize(), optax.sgd(r))),
    "adaptive clip": (0.1, lambda r: optax.chain(optax.adaptive_grad_clip(0.1), optax.sgd(r))),
    "decayed": (0.05, lambda r: optax.chain(optax.add_decayed_weights(0.01), optax.sgd(r, momentum=0.9))),
    "amsgrad": (0.01, lambda r: optax.amsgrad(r, eps=1e-4)),
    "if finite": (0.02, lambda r: optax.apply_if_finite(optax.sgd(r), 3)),
    "several steps": (0.05, lambda r: optax.MultiSteps(optax.sgd(r), 2).gradient_transformation()),
}  # fmt: skip

# ---- data --------------------------------------------------------------------------------------------------------

INPUTS = ("normal", "normal", "normal", "whole numbers", "zeros", "repeated", "constant patches", "large", "tokens")


def examples(seed: int, kind: str, shape: list[int], n: int, outputs: int):
    """`n` examples: x [n, *shape] float32 or int32 tokens, labels [n] int32, targets [n, outputs] float32."""
    rng = np.random.default_rng([seed, 1])
    x = rng.normal(size=(n, *shape)).astype(np.float32)
    if kind == "whole numbers":
        x = np.round(x)
    elif kind == "zeros":
        x = np.where(rng.random(x.shape) < 0.6, np.float32(0), x)
    elif kind == "repeated":
        x = x[rng.integers(0, max(1, n // 4), n)]
    elif kind == "constant patches":
        x = np.where(np.arange(shape[0]).reshape([-1] + [1] * (len(shape) - 1)) % 4 < 2, x[:, :1], x)
    elif kind == "large":
        x = x * np.float32(20)
    elif kind == "tokens":
        x = rng.integers(0, 7, (n, *shape)).astype(np.int32)
    labels = rng.integers(0, outputs, n).astype(np.int32)
    targets = np.round(rng.normal(size=(n, outputs)), 1).astype(np.float32)
    return x, labels, targets
