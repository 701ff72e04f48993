"""Products of bfloat16 numbers in a function of float32 ones.

Everything else stays float32: the sums of the products, activations, normalisation, loss, gradients, weights and the
optimiser's state. Micikevicius et al., "Mixed Precision Training" (2018), with bfloat16's wide exponent, so that the
loss needs no scale.

It takes products of float32 numbers. NaN and infinities stay what they are; so do subnormal numbers, as far as eight
bits hold them, and numbers above 3.39e38 become infinite.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from vmaptune.rewrite._walk import call_instead, with_exchanged

PRODUCTS = ("dot_general", "conv_general_dilated")


class InBfloat16:
    """A product's primitive and parameters: operands rounded to bfloat16, the result float32.

    On a CPU the rounded numbers stay float32, in which their products are exact: it has no kernel for some products of
    bfloat16 numbers (XLA's DotThunk refuses them), and XLA may leave out a conversion to bfloat16 and back.
    """

    def __init__(self, eqn: Any):
        self.primitive = eqn.primitive
        self.params = {**eqn.params, "precision": None, "preferred_element_type": jnp.dtype(jnp.float32)}

    def __call__(self, *operands: jax.Array) -> jax.Array:
        if jax.default_backend() == "cpu":
            operands = tuple(lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7) for x in operands)
            return self.primitive.bind(*operands, **self.params)
        return self.primitive.bind(*(x.astype(jnp.bfloat16) for x in operands), **self.params)


def bfloat16_product(eqn: Any) -> Any:
    """The equation to compute in the place of a product of float32 arrays; others as they are."""
    if eqn.primitive.name not in PRODUCTS or any(v.aval.dtype != jnp.float32 for v in eqn.invars):
        return eqn
    return call_instead(eqn, f"bfloat16_{eqn.primitive.name}", (InBfloat16(eqn),))


def with_bfloat16_products(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, such as one that returns a gradient, with its products in bfloat16.

    Apply it after `jax.grad`: the gradient's products are exchanged then as well.
    """
    return with_exchanged(function, bfloat16_product)
