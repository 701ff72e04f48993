"""Layers of random models along axes, and with control flow; written as in `_layers.py`."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fuzzing._layers import NoWeights, layer, product

# ---- along axes -------------------------------------------------------------------------------------------------


@layer(3)
class Norm:
    """Batch, layer, RMS and group norm and their kin, with the batch's own moments."""

    @staticmethod
    def draw(g, shape):
        kind = g.pick(["batch", "batch", "layer", "rms", "group", "instance", "l2", "all", "softmax"])
        groups = g.pick([n for n in (1, 2, 3, 4) if shape[-1] % n == 0])
        return {"kind": kind, "groups": groups, "eps": g.pick([1e-2, 1e-3, 1e-5]), "affine": g.chance(0.5)}

    @staticmethod
    def init(w, shape, kind, groups, eps, affine):
        return {"scale": w.ones(shape[-1]), "shift": w.zeros(shape[-1])} if affine else {}

    @staticmethod
    def apply(p, x, ctx, kind, groups, eps, affine):
        last, middle = x.ndim - 1, tuple(range(1, x.ndim - 1))
        if kind == "rms":
            x = x * lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + eps)
        elif kind == "l2":
            x = x / jnp.sqrt(jnp.sum(x * x, -1, keepdims=True) + eps)
        elif kind == "softmax":
            x = x.shape[-1] * jax.nn.softmax(x, -1)
        elif kind == "group":
            split = x.reshape(*x.shape[:-1], groups, x.shape[-1] // groups)
            axes = (*middle, split.ndim - 1)
            mean = split.mean(axes, keepdims=True)
            x = ((split - mean) * lax.rsqrt(split.var(axes, keepdims=True) + eps)).reshape(x.shape)
        else:
            axes = {"batch": (0, *middle), "layer": (last,), "instance": middle or (last,), "all": None}[kind]
            mean = x.mean(axes, keepdims=True)
            x = (x - mean) / jnp.sqrt(((x - mean) ** 2).mean(axes, keepdims=True) + eps)
        return x * p["scale"] + p["shift"] if affine else x


REDUCTIONS = ("sum", "mean", "max", "min", "var", "logsumexp", "prod", "any", "norm", "median", "argmax", "argmin")


def reduced(x, kind, axes, keepdims):
    size = math.prod(x.shape[a] for a in axes)
    if kind in ("argmax", "argmin"):
        out = (jnp.argmax if kind == "argmax" else jnp.argmin)(x, axes[-1], keepdims=keepdims)
        return out.astype(x.dtype) * 0.1
    if kind == "any":
        return jnp.any(x > 1, axes, keepdims=keepdims).astype(x.dtype)
    if kind == "logsumexp":
        return jax.nn.logsumexp(x, axes, keepdims=keepdims)
    if kind == "norm":
        return jnp.sqrt((x * x).sum(axes, keepdims=keepdims) + 1e-3)
    if kind == "prod":
        return jnp.prod(1 + 0.1 * jnp.tanh(x) / size, axes, keepdims=keepdims)
    out = getattr(jnp, kind)(x, axes, keepdims=keepdims)
    return out / math.sqrt(size) if kind == "sum" else out


@layer(4)
class Reduce(NoWeights):
    """A reduction over any of an example's axes, or of the batch's; taken off the array, or put beside it."""

    @staticmethod
    def draw(g, shape):
        axes = [a for a in range(len(shape) + 1) if g.chance(0.25 if a == 0 else 0.5)] or [len(shape)]
        return {"kind": g.pick(REDUCTIONS), "axes": axes, "how": g.pick(["minus", "times", "beside", "instead"])}

    @staticmethod
    def apply(p, x, ctx, kind, axes, how):
        if how == "instead" and 0 not in axes and 0 < len(axes) < x.ndim - 1 and not kind.startswith("arg"):
            return reduced(x, kind, tuple(axes), False)
        out = reduced(x, kind, tuple(axes), True)
        if how == "beside" and out.shape[:-1] == x.shape[:-1]:
            return jnp.concatenate([x, out], -1)
        return x * (1 + 0.1 * out) if how == "times" else x - out


@layer(2.5)
class Order(NoWeights):
    """Sorting, picking and cumulating along an axis."""

    @staticmethod
    def draw(g, shape):
        kinds = ["sort", "top_k", "cumsum", "cumlogsumexp", "cummax", "flip", "roll", "one_hot", "take", "along",
                 "rank", "pairs", "cumprod"]  # fmt: skip
        return {"kind": g.pick(kinds), "axis": g.int(1, len(shape)), "k": g.int(1, 4)}

    @staticmethod
    def apply(p, x, ctx, kind, axis, k):
        n = x.shape[axis]
        if kind == "sort":
            return jnp.sort(x, axis)
        if kind == "top_k":
            return lax.top_k(x, min(k, x.shape[-1]))[0]
        if kind == "cumsum":
            return jnp.cumsum(x, axis) / math.sqrt(n)
        if kind == "cumprod":
            return jnp.cumprod(1 + jnp.tanh(x) / n, axis)
        if kind == "cumlogsumexp":
            return lax.cumlogsumexp(x, axis)
        if kind == "cummax":
            return lax.cummax(x, axis)
        if kind == "flip":
            return jnp.flip(x, axis)
        if kind == "roll":
            return x + jnp.roll(x, k, axis)
        if kind == "one_hot":
            return x * jax.nn.one_hot(jnp.argmax(x, -1), x.shape[-1], dtype=x.dtype) + 0.1 * x
        if kind == "take":
            return jnp.take(x, np.arange(0, n, k), axis)
        if kind == "along":
            index = jnp.argmin(x, axis, keepdims=True)
            return x - jnp.take_along_axis(x, index, axis)
        if kind == "rank":
            return x * (1 + 0.1 * jnp.argsort(jnp.argsort(lax.stop_gradient(x), axis), axis).astype(x.dtype) / n)
        keys, values = lax.sort((x, jnp.tanh(x) * 2), dimension=axis, num_keys=1)
        return keys + jnp.flip(values, axis)


@layer(1.5)
class Shape(NoWeights):
    """Axes exchanged, split, merged, padded or repeated."""

    @staticmethod
    def draw(g, shape):
        last = shape[-1]
        parts = [n for n in (1, 2, 3, 4, 5) if last % n == 0]
        kinds = ["one"] + ["split"] * 2 * (len(shape) < 3) + ["merge", "exchange"] * (len(shape) > 1)
        return {"kind": g.pick([*kinds, "pad", "repeat"]), "n": g.pick(parts)}

    @staticmethod
    def apply(p, x, ctx, kind, n):
        if kind == "split":
            return x.reshape(*x.shape[:-1], n, x.shape[-1] // n)
        if kind == "merge":
            return x.reshape(*x.shape[:-2], -1)
        if kind == "exchange":
            return jnp.swapaxes(x, -1, -2)
        if kind == "pad":
            return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(1, 0)])
        if kind == "repeat":
            return jnp.repeat(x, 2, -1) if x.shape[-1] < 20 else x
        return x[..., None] if x.ndim < 4 else x


# ---- control flow -----------------------------------------------------------------------------------------------


@layer(2)
class Flow:
    """A square layer in a branch, a loop, a scan over layers, or a checkpoint."""

    @staticmethod
    def draw(g, shape):
        kinds = ["cond", "switch", "fori", "scan", "while", "checkpoint", "residual", "jit of two", "select", "map",
                 "barrier", "scan of two"]  # fmt: skip
        return {"kind": g.pick(kinds), "times": g.int(1, 4), "form": g.pick(("x@w", "x@w.T", "vmap w@x"))}

    @staticmethod
    def init(w, shape, kind, times, form):
        return {"w": w(times, shape[-1], shape[-1], scale=0.7 / math.sqrt(shape[-1]))}

    @staticmethod
    def apply(p, x, ctx, kind, times, form):
        w = p["w"]

        def once(x, w=w[0]):
            return jnp.tanh(product(w, x, form)) + 0.5 * x

        if kind == "cond":
            return lax.cond(x.mean() > 0, once, lambda x: x * 0.5, x)
        if kind == "switch":
            return lax.switch((jnp.abs(x[0].ravel()[0]) * 3).astype(jnp.int32), [once, jnp.tanh, lambda x: x], x)
        if kind == "fori":
            return lax.fori_loop(0, times, lambda i, x: once(x, w[i]), x)
        if kind == "scan":
            return lax.scan(lambda x, w: (once(x, w), None), x, w)[0]
        if kind == "scan of two":
            one, two = lax.scan(lambda c, w: ((once(c[0], w), jnp.tanh(c[1] + c[0])), None), (x, x * 0.5), w)[0]
            return jax.nn.softmax(one, -1) + jax.nn.softmax(two, -1)
        if kind == "while":
            n = lax.stop_gradient(times + (x.sum() > 0))
            most = lax.while_loop(lambda c: c[0] < n, lambda c: (c[0] + 1, c[1] * 0.9), (0, jnp.ones((), x.dtype)))[1]
            return once(x) * most
        if kind == "checkpoint":
            return jax.checkpoint(once)(x)
        if kind == "residual":
            return x + once(x)
        if kind == "jit of two":
            a, b = jax.jit(lambda x: (once(x), jnp.sin(x)))(x)
            return (a - a.max(-1, keepdims=True)) * 0.5 + (b - b.max(-1, keepdims=True))
        if kind == "select":
            return jnp.where(x.mean(-1, keepdims=True) > 0, once(x), x)
        if kind == "map":
            return lax.map(once, x)
        a, b = lax.optimization_barrier((once(x), jnp.cos(x)))
        return a - a.max(-1, keepdims=True) + b.max(-1, keepdims=True)
