"""Layers of random models for sequences and images, and some that look things up; written as in `_layers.py`."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fuzzing._layers import NoWeights, computed, layer, product, weights_for

# ---- sequences: an example is [T, C] ----------------------------------------------------------------------------


@layer(6)
class Recurrent:
    """A recurrent network by `scan`, with a head written on single vectors or on batches."""

    @staticmethod
    def draw(g, shape):
        if len(shape) != 2 or shape[0] > 12:
            return None
        cell = g.pick(["tanh", "tanh", "gru", "lstm", "two", "leaky"])
        return {"cell": cell, "units": g.size(20), "form": g.pick(["x@w", "x@w.T", "vmap w@x", "inner", "(w@x.T).T"]),
                "per_example": g.chance(0.4), "last": g.chance(0.6), "unroll": g.pick([1, 1, 2])}  # fmt: skip

    @staticmethod
    def init(w, shape, cell, units, form, per_example, last, unroll):
        gates = {"gru": 3, "lstm": 4}.get(cell, 1)
        p = weights_for(w, shape[-1], gates * units, form, True, "x")
        return p | weights_for(w, units, gates * units, form, False, "h")

    @staticmethod
    def apply(p, x, ctx, cell, units, form, per_example, last, unroll):
        def step(carry, x):
            a, b = computed(p, x, form, True, "x"), product(p["h"], carry[0], form)
            if cell == "gru":
                (r, z, n), (rb, zb, nb) = jnp.split(a, 3, -1), jnp.split(b, 3, -1)
                z = jax.nn.sigmoid(z + zb)
                h = (1 - z) * jnp.tanh(n + jax.nn.sigmoid(r + rb) * nb) + z * carry[0]
                return (h,), h
            if cell == "lstm":
                i, f, o, n = jnp.split(a + b, 4, -1)
                c = jax.nn.sigmoid(f + 1) * carry[1] + jax.nn.sigmoid(i) * jnp.tanh(n)
                h = jax.nn.sigmoid(o) * jnp.tanh(c)
                return (h, c), h
            if cell == "two":
                h = jnp.tanh(a + b)
                return (h, 0.9 * carry[1] + 0.1 * h), h + carry[1]
            h = jnp.tanh(a + b) if cell == "tanh" else 0.5 * carry[0] + 0.5 * jax.nn.relu(a + b)
            return (h,), h

        def run(x):  # [T, C] or [T, B, C]
            zero = jnp.zeros((*x.shape[1:-1], units), x.dtype)
            carry = (zero, zero) if cell in ("lstm", "two") else (zero,)
            carry, out = lax.scan(step, carry, x, unroll=unroll)
            return carry[-1] if last else out

        if per_example and form not in ("(w@x.T).T",):
            return jax.vmap(run)(x)
        out = run(jnp.swapaxes(x, 0, 1))
        return out if last else jnp.swapaxes(out, 0, 1)


@layer(4)
class Attention:
    @staticmethod
    def draw(g, shape):
        if len(shape) != 2:
            return None
        return {"heads": g.int(1, 3), "units": g.int(1, 8), "masked": g.chance(0.3), "cross": g.chance(0.2),
                "form": g.int(0, 2)}  # fmt: skip

    @staticmethod
    def init(w, shape, heads, units, masked, cross, form):
        p = {name: w(shape[-1], heads * units) for name in "qkv"}
        return p | {"o": w(heads * units, shape[-1])} | ({"queries": w(3, shape[-1], scale=1.0)} if cross else {})

    @staticmethod
    def apply(p, x, ctx, heads, units, masked, cross, form):
        asking = jnp.broadcast_to(p["queries"], (len(x), *p["queries"].shape)) if cross else x
        q, k, v = ((a @ p[n]).reshape(*a.shape[:-1], heads, units) for n, a in zip("qkv", (asking, x, x), strict=True))
        if form == 2:
            q, k, v = (jnp.swapaxes(a, 1, 2) for a in (q, k, v))
            scores = q @ jnp.swapaxes(k, -1, -2)
        else:
            scores = jnp.einsum("bqhd,bkhd->bhqk" if form else "bqhd,bkhd->bqhk", q, k)
        scores = scores / math.sqrt(units)
        if masked:
            rows, columns = (scores.shape[a] for a in ((2, 3) if form else (1, 3)))
            seen = np.tril(np.ones((rows, columns), bool))
            scores = jnp.where(seen if form else seen[:, None, :], scores, -1e9)
        share = jax.nn.softmax(scores, -1)
        if form == 2:
            out = jnp.swapaxes(share @ v, 1, 2)
        else:
            out = jnp.einsum("bhqk,bkhd->bqhd" if form else "bqhk,bkhd->bqhd", share, v)
        return out.reshape(*out.shape[:2], heads * units) @ p["o"]


@layer(4)
class AttentionPool:
    @staticmethod
    def draw(g, shape):
        return {"units": g.size(16), "out": g.pick([1, 1, 2]), "tanh": g.chance(0.5)} if len(shape) == 2 else None

    @staticmethod
    def init(w, shape, units, out, tanh):
        return {"a": w(shape[-1], units), "b": w(units, out)}

    @staticmethod
    def apply(p, x, ctx, units, out, tanh):
        h = x @ p["a"]
        share = jax.nn.softmax((jnp.tanh(h) if tanh else h) @ p["b"], axis=1)  # [B, T, out]
        return (share[..., None] * x[:, :, None, :]).sum(1).reshape(len(x), -1)


@layer(1.5)
class MixTime:
    @staticmethod
    def draw(g, shape):
        return {"times": g.size(12), "form": g.int(0, 2)} if len(shape) == 2 else None

    @staticmethod
    def init(w, shape, times, form):
        return {"w": w(shape[0], times)}

    @staticmethod
    def apply(p, x, ctx, times, form):
        if form == 0:
            return jnp.einsum("btc,ts->bsc", x, p["w"])
        return p["w"].T @ x if form == 1 else jax.vmap(lambda e: (e.T @ p["w"]).T)(x)


# ---- convolutions and pooling: an example is [*spatial, C] --------------------------------------------------------


@layer(7)
class Conv:
    @staticmethod
    def draw(g, shape):
        if len(shape) not in (2, 3):
            return None
        spatial = len(shape) - 1
        return {
            "channels": g.pick([1, 2, 3, 4, 5, 7, 8, 8]), "kernel": [g.int(1, 3) for _ in range(spatial)],
            "stride": [g.pick([1, 1, 2]) for _ in range(spatial)], "padding": g.pick(["SAME", "VALID", "SAME"]),
            "dilation": g.pick([1, 1, 1, 2]), "groups": g.pick(["one", "one", "one", "each"]),
            "channels_first": g.chance(0.15), "bias": g.chance(0.6),
        }  # fmt: skip

    @staticmethod
    def init(w, shape, channels, kernel, groups, bias, **rest):
        inputs = shape[-1]
        channels = inputs if groups == "each" else channels
        fan_in = math.prod(kernel) * (1 if groups == "each" else inputs)
        p = {"w": w(*kernel, 1 if groups == "each" else inputs, channels, scale=1 / math.sqrt(fan_in))}
        return p | ({"b": w.zeros(channels)} if bias else {})

    @staticmethod
    def apply(p, x, ctx, channels, kernel, stride, padding, dilation, groups, channels_first, bias):
        spatial = "HW"[: x.ndim - 2]
        data = f"NC{spatial}" if channels_first else f"N{spatial}C"
        groups = x.shape[-1] if groups == "each" else 1
        out = lax.conv_general_dilated(
            jnp.moveaxis(x, -1, 1) if channels_first else x, p["w"], stride, padding,
            rhs_dilation=(dilation,) * (x.ndim - 2), dimension_numbers=(data, f"{spatial}IO", data),
            feature_group_count=groups,
        )  # fmt: skip
        out = jnp.moveaxis(out, 1, -1) if channels_first else out
        return out + p["b"] if bias else out


@layer(5)
class Pool(NoWeights):
    """Windows over space, and now and then over channels, whose largest number or sum is taken."""

    @staticmethod
    def draw(g, shape):
        if len(shape) not in (2, 3):
            return None
        window = [g.int(1, 3) for _ in shape[:-1]] + [g.pick([1, 1, 2])]
        stride = [g.int(1, n) for n in window]
        return {"kind": g.pick(["max", "max", "max", "sum", "min"]), "window": window, "stride": stride,
                "padding": g.pick(["VALID", "SAME"])}  # fmt: skip

    @staticmethod
    def apply(p, x, ctx, kind, window, stride, padding):
        if any(n > size for n, size in zip(window, x.shape[1:], strict=True)) and padding == "VALID":
            padding = "SAME"
        first, of_two = {"max": (-np.inf, lax.max), "min": (np.inf, lax.min), "sum": (0.0, lax.add)}[kind]
        out = lax.reduce_window(x, np.asarray(first, x.dtype), of_two, (1, *window), (1, *stride), padding)
        return out / math.sqrt(math.prod(window)) if kind == "sum" else out


@layer(1)
class Upsample(NoWeights):
    @staticmethod
    def draw(g, shape):
        return {"kind": g.pick(["repeat", "resize"])} if len(shape) == 3 and max(shape[:2]) < 8 else None

    @staticmethod
    def apply(p, x, ctx, kind):
        if kind == "repeat":
            return jnp.repeat(jnp.repeat(x, 2, 1), 2, 2)
        n, h, w, c = x.shape
        return jax.image.resize(x, (n, 2 * h, 2 * w, c), "linear")


# ---- others -----------------------------------------------------------------------------------------------------


@layer(1.5)
class Table:
    """Embeddings of the largest entry's place, looked up in one of several ways."""

    @staticmethod
    def draw(g, shape):
        return {"units": g.size(16), "how": g.pick(["index", "take", "one_hot", "gather"])}

    @staticmethod
    def init(w, shape, units, how):
        return {"table": w(shape[-1], units, scale=0.5), "w": w(shape[-1], units)}

    @staticmethod
    def apply(p, x, ctx, units, how):
        place, table = jnp.argmax(x, -1), p["table"]
        if how == "index":
            found = table[place]
        elif how == "take":
            found = jnp.take(table, place, axis=0, mode="clip")
        elif how == "one_hot":
            found = jax.nn.one_hot(place, len(table), dtype=x.dtype) @ table
        else:
            found = table.at[place].get(mode="fill", fill_value=0)
        return found + x @ p["w"]


@layer(1)
class Centres:
    """Distances to centres, as in an RBF network or a codebook."""

    @staticmethod
    def draw(g, shape):
        return {"units": g.size(16), "how": g.pick(["rbf", "nearest", "product"])}

    @staticmethod
    def init(w, shape, units, how):
        return {"centres": w(units, shape[-1], scale=1.0)}

    @staticmethod
    def apply(p, x, ctx, units, how):
        c = p["centres"]
        if how == "product":
            d = (x * x).sum(-1, keepdims=True) - 2 * x @ c.T + (c * c).sum(-1)
        else:
            d = ((x[..., None, :] - c) ** 2).sum(-1)
        d = d / x.shape[-1]
        return jax.nn.softmax(-d, -1) * units if how == "nearest" else jnp.exp(-d)


@layer(0.7)
class Algebra:
    """Small factorisations of a matrix of the example's own."""

    @staticmethod
    def draw(g, shape):
        if len(shape) != 1 or shape[0] > 24:
            return None
        return {"n": g.int(1, 4), "kind": g.pick(["solve", "cholesky", "inv", "slogdet", "triangular", "qr"])}

    @staticmethod
    def init(w, shape, n, kind):
        return {"w": w(shape[0], n * n)}

    @staticmethod
    def apply(p, x, ctx, n, kind):
        a = jnp.tanh(x @ p["w"]).reshape(-1, n, n)
        eye = jnp.eye(n, dtype=x.dtype)
        square = a @ jnp.swapaxes(a, 1, 2) / n + eye
        if kind == "solve":
            return jnp.linalg.solve(square, a).reshape(len(x), -1)
        if kind == "cholesky":
            return jnp.linalg.cholesky(square).reshape(len(x), -1)
        if kind == "inv":
            return jnp.linalg.inv(square).reshape(len(x), -1)
        if kind == "slogdet":
            return jnp.concatenate([x, jnp.linalg.slogdet(square)[1][:, None]], -1)
        if kind == "triangular":
            return lax.linalg.triangular_solve(square, a, left_side=True, lower=True).reshape(len(x), -1)
        return jnp.linalg.qr(square)[1].reshape(len(x), -1)
