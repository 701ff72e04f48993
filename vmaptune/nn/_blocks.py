"""A depth per lane: blocks in a row, of which a lane passes through the first ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from vmaptune.nn._sizes import Held, Size

LIST: Any = getattr(nnx, "List", list)  # before Flax 0.12 a module takes a plain list


class Blocks(nnx.Module):
    """`depth` blocks in a row, each from the shape of its input to the same shape.

        width = vt.nn.size(hp, "width")
        vt.nn.Blocks(vt.nn.size(hp, "depth"), lambda rngs: vt.nn.Linear(width, width, rngs=rngs), rngs=rngs)

    Where the depth is traced there are as many blocks as the deepest lane needs, and the input passes those beyond
    the lane's own depth unchanged; their parameters are zeros and receive zero gradients. Block `i` draws from a key
    of its own, so a lane has the same first numbers as a model of its depth alone.

    Args:
      depth: a `Size` or a plain number.
      make: `rngs -> module` for one block; called once a block.
      between: applied to each block's output, before it is passed on: an activation, say.
      rngs: one key of its `params` stream is consumed.
    """

    def __init__(
        self,
        depth: Size | int,
        make: Callable[[nnx.Rngs], Any],
        *,
        between: Callable[[jax.Array], jax.Array] | None = None,
        rngs: nnx.Rngs,
    ):
        key = rngs.params()
        count = depth if isinstance(depth, Size) else Size(depth, max(depth, 1))
        self.depth, self.between = Held(count), Held(between)
        built = count.most if count.is_traced else count.value
        blocks = [make(nnx.Rngs(jax.random.fold_in(key, i))) for i in range(built)]
        if count.is_traced:
            for i, block in enumerate(blocks):
                there = i < count.value
                params = nnx.state(block, nnx.Param)
                nnx.update(block, jax.tree.map(lambda p, there=there: jnp.where(there, p, jnp.zeros_like(p)), params))
        self.blocks = LIST(blocks)

    def __call__(self, x: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
        depth, between = self.depth.value, self.between.value
        for i, block in enumerate(self.blocks):
            out = block(x, *args, **kwargs)
            out = out if between is None else between(out)
            x = jnp.where(i < depth.value, out, x) if depth.is_traced else out
        return x
