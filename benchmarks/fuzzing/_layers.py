"""Layers of random models in plain JAX, each written in several of the ways in which people write it.

A layer is a class with three functions: `draw(g, shape)` chooses its settings for examples of one shape, or returns
None where it takes no such shape; `init(w, shape, **settings)` makes its weights, a flat dict of arrays; and
`apply(p, x, ctx, **settings)` computes it for a batch, `x` [B, *shape]. None names a float type, so that each
computes in the precision of its weights.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

LAYERS: dict[str, Any] = {}


class Context(NamedTuple):
    """What a layer may know besides its input."""

    key: Any  # of this step, or None
    train: bool


def layer(weight: float = 1.0) -> Any:
    """Registers a class of layers; `weight` says how often it is drawn."""

    def register(cls: Any) -> Any:
        cls.weight = weight
        LAYERS[cls.__name__.lower()] = cls
        return cls

    return register


class NoWeights:
    @staticmethod
    def draw(g, shape):
        return {}

    @staticmethod
    def init(w, shape, **settings):
        return {}


# ---- products ---------------------------------------------------------------------------------------------------

IN_OUT = ("x@w", "...i,io->...o", "io,...i->...o", "sum", "dot_general", "tensordot", "i...,io->...o")
OUT_IN = ("x@w.T", "vmap w@x", "(w@x.T).T", "inner", "...i,oi->...o", "...i,oi->o...")


def product(w, x, form):
    """`x` [..., F] times a layer's weights, in one of the forms above."""
    if form == "x@w":
        return x @ w
    if form == "x@w.T":
        return x @ w.T
    if form == "vmap w@x":
        of_one = lambda h: w @ h  # noqa: E731
        for _ in range(x.ndim - 1):
            of_one = jax.vmap(of_one)
        return of_one(x)
    if form == "(w@x.T).T":
        return (w @ x.reshape(-1, x.shape[-1]).T).T.reshape(*x.shape[:-1], w.shape[0])
    if form == "inner":
        return jnp.moveaxis(jnp.inner(w, x), 0, -1)
    if form == "sum":
        return (x[..., :, None] * w).sum(-2)
    if form == "dot_general":
        return lax.dot_general(x, w, (((x.ndim - 1,), (0,)), ((), ())))
    if form == "tensordot":
        return jnp.tensordot(x, w, 1)
    if form == "i...,io->...o":
        return jnp.einsum(form, jnp.moveaxis(x, -1, 0), w)
    if form == "...i,oi->o...":
        return jnp.moveaxis(jnp.einsum(form, x, w), 0, -1)
    return jnp.einsum(form, *((w, x) if form.startswith("io,") else (x, w)))


def drawn_product(g, units):
    return {"units": units, "form": g.pick(IN_OUT + OUT_IN), "bias": g.chance(0.6)}


def weights_for(w, features, units, form, bias, name="w"):
    p = {name: w(features, units)}
    if form in OUT_IN:
        p[name] = p[name].T
    if bias:
        p[name + "b"] = w.zeros(units)
    return p


def computed(p, x, form, bias, name="w"):
    out = product(p[name], x, form)
    return out + p[name + "b"] if bias else out


@layer(8)
class Dense:
    @staticmethod
    def draw(g, shape):
        return drawn_product(g, g.size())

    @staticmethod
    def init(w, shape, units, form, bias):
        return weights_for(w, shape[-1], units, form, bias)

    @staticmethod
    def apply(p, x, ctx, units, form, bias):
        return computed(p, x, form, bias)


@layer(1.5)
class Split:
    """One product whose two halves meet again, as a gate, a mean and a scale, or two heads do."""

    @staticmethod
    def draw(g, shape):
        return drawn_product(g, g.size(20)) | {
            "meet": g.pick(["gate", "max", "softmaxes", "concatenate", "jit", "sort"])
        }

    @staticmethod
    def init(w, shape, units, form, bias, meet):
        return weights_for(w, shape[-1], 2 * units, form, bias)

    @staticmethod
    def apply(p, x, ctx, units, form, bias, meet):
        a, b = jnp.split(computed(p, x, form, bias), 2, axis=-1)
        if meet == "gate":
            return a * jax.nn.sigmoid(b)
        if meet == "max":
            return a - a.max(-1, keepdims=True) + 0.5 * (b - b.min(-1, keepdims=True))
        if meet == "softmaxes":
            return units * (jax.nn.softmax(a, -1) - jax.nn.softmax(b, -1))
        if meet == "jit":
            a, b = jax.jit(lambda a, b: (jnp.tanh(a + b), a * b))(a, b)
            return jax.nn.log_softmax(a, -1) + 0.1 * jax.nn.log_softmax(b, -1)
        if meet == "sort":
            a, b = lax.sort((a, b), dimension=a.ndim - 1, num_keys=1)
            return jax.nn.softmax(a, -1) + 0.3 * jax.nn.softmax(b, -1)
        return jnp.concatenate([b, a], -1)


@layer(1.5)
class Mixture:
    """A mixture of experts, of all of them or of the best few."""

    @staticmethod
    def draw(g, shape):
        return {"units": g.size(20), "experts": g.int(1, 5), "best": g.pick([0, 0, 1, 2]), "form": g.int(0, 2)}

    @staticmethod
    def init(w, shape, units, experts, best, form):
        w_shape = (shape[-1], experts, units) if form == 1 else (experts, shape[-1], units)
        return {"gate": w(shape[-1], experts), "w": w(*w_shape, scale=1 / math.sqrt(shape[-1]))}

    @staticmethod
    def apply(p, x, ctx, units, experts, best, form):
        gate = x @ p["gate"]
        if best and best < experts:
            least = lax.top_k(gate, best)[0][..., -1:]
            gate = jnp.where(gate >= least, gate, -jnp.inf)
        gate = jax.nn.softmax(gate, -1)
        if form == 0:
            return jnp.einsum("...e,...i,eio->...o", gate, x, p["w"])
        if form == 1:
            return jnp.einsum("...e,...eo->...o", gate, jnp.einsum("...i,ieo->...eo", x, p["w"]))
        return (gate[..., None] * jnp.einsum("...i,eio->...eo", x, p["w"])).sum(-2)


@layer(1)
class Bilinear:
    @staticmethod
    def draw(g, shape):
        return {"units": g.size(12), "form": g.int(0, 1)}

    @staticmethod
    def init(w, shape, units, form):
        return {
            "a": w(shape[-1], units),
            "b": w(units, shape[-1]),
            "c": w(units, units, units, scale=1 / max(1, units)),
        }

    @staticmethod
    def apply(p, x, ctx, units, form):
        a, b = x @ p["a"], x @ p["b"].T if form else jnp.einsum("...i,oi->...o", x, p["b"])
        return a + jnp.einsum("...i,...j,ijk->...k", jnp.tanh(a), b, p["c"])


# ---- number by number -------------------------------------------------------------------------------------------


@jax.custom_jvp
def _centred(x):
    return jnp.tanh(x)


@_centred.defjvp
def _centred_rule(primals, tangents):
    (x,), (t,) = primals, tangents
    return jnp.tanh(x), (1 - jnp.tanh(x) ** 2) * (t - t.mean(0, keepdims=True))


@jax.custom_jvp
def _quantised(x):
    return jnp.round(x * 2) / 2


@_quantised.defjvp
def _quantised_rule(primals, tangents):
    return _quantised(*primals), tangents[0]


@jax.custom_vjp
def _clipped(x):
    return x * 1.5


def _clipped_fwd(x):
    return x * 1.5, x.sum(-1, keepdims=True)


def _clipped_bwd(total, g):
    return (g / jnp.maximum(1, jnp.sqrt((g * g).sum())) * jnp.cos(total),)


_clipped.defvjp(_clipped_fwd, _clipped_bwd)


@jax.custom_vjp
def _pair(x):
    return jnp.sin(x), jnp.cos(x)


def _pair_fwd(x):
    return _pair(x), x


def _pair_bwd(x, g):
    return (g[0] * jnp.cos(x) - 0.5 * g[1] * jnp.sin(x),)


_pair.defvjp(_pair_fwd, _pair_bwd)


def _of_pair(x):
    a, b = _pair(x)
    return jax.nn.log_softmax(a, -1) * 0.3 + b - b.max(-1, keepdims=True)


BY_NUMBER = {
    "tanh": jnp.tanh, "gelu": jax.nn.gelu, "exact gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "relu": jax.nn.relu, "max 0": lambda x: jnp.maximum(x, 0), "softplus": jax.nn.softplus, "silu": jax.nn.silu,
    "elu": jax.nn.elu, "sigmoid": jax.nn.sigmoid, "sin": jnp.sin, "abs": jnp.abs, "square": lambda x: 0.2 * x * x,
    "leaky": jax.nn.leaky_relu, "log1p": lambda x: jnp.log1p(x * x), "bell": lambda x: jnp.exp(-x * x),
    "root": lambda x: jnp.sqrt(1 + x * x), "softsign": lambda x: x / (1 + jnp.abs(x)), "erf": lax.erf,
    "clip": lambda x: jnp.clip(x, -1, 1), "where": lambda x: jnp.where(x > 0.1, x, 0.3 * jnp.sin(x)),
    "power": lambda x: jnp.sign(x) * jnp.abs(x + 1e-3) ** 0.75, "atan2": lambda x: jnp.arctan2(x, 1.5),
    "centred rule": _centred, "quantised": _quantised, "clipped rule": _clipped, "rule of pairs": _of_pair,
    "stopped": lambda x: x + lax.stop_gradient(jnp.tanh(x)), "mish": lambda x: x * jnp.tanh(jax.nn.softplus(x)),
    "logit": lambda x: jnp.log(jnp.clip(jax.nn.sigmoid(x), 1e-3, 1 - 1e-3)), "rsqrt": lambda x: x * lax.rsqrt(1 + x**2),
    "bfloat16": lambda x: jnp.tanh(x.astype(jnp.bfloat16)).astype(x.dtype), "divided": lambda x: x / 3.7,
    "float16": lambda x: (x.astype(jnp.float16) * 2).astype(x.dtype), "remainder": lambda x: jnp.mod(x, 2.0) - 1,
}  # fmt: skip


@layer(8)
class Activation(NoWeights):
    @staticmethod
    def draw(g, shape):
        return {"kind": g.pick(["tanh", "relu", "gelu", *BY_NUMBER, *BY_NUMBER])}

    @staticmethod
    def apply(p, x, ctx, kind):
        return BY_NUMBER[kind](x)


@layer(1)
class Dropout(NoWeights):
    @staticmethod
    def draw(g, shape):
        return {"rate": g.pick([0.1, 0.5]), "how": g.pick(["uniform", "bits", "normal"])}

    @staticmethod
    def apply(p, x, ctx, rate, how):
        if ctx.key is None or not ctx.train:
            return x
        if how == "normal":
            return x * (1 + rate * jax.random.normal(ctx.key, x.shape, jnp.float32).astype(x.dtype))
        if how == "bits":
            kept = jax.random.bits(ctx.key, x.shape, jnp.uint32) >= np.uint32(rate * 2**32)
        else:
            kept = jax.random.uniform(ctx.key, x.shape, jnp.float32) >= np.float32(rate)
        return jnp.where(kept, x / (1 - rate), 0)
