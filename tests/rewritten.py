"""A function as it is fitted for a CPU, and numbers to compute it with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vmaptune.rewrite import fit_for_cpu


def fitted(function: Callable[..., Any], *args: Any, **options: bool) -> tuple[Callable[..., Any], Any]:
    """`function` computed by its jaxpr as fitted, and that jaxpr."""
    closed, out = jax.make_jaxpr(function, return_shape=True)(*args)
    jaxpr = fit_for_cpu(closed.jaxpr, **options)

    def call(*values: Any) -> Any:
        flat = jax.core.eval_jaxpr(jaxpr, closed.consts, *jax.tree.leaves(values))
        return jax.tree.unflatten(jax.tree.structure(out), flat)

    return call, jaxpr


def in_64_bits() -> Any:
    """A context in which numbers have 64 bits; JAX 0.7 keeps it elsewhere."""
    return jax.enable_x64(True) if hasattr(jax, "enable_x64") else jax.experimental.enable_x64()


def normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)
