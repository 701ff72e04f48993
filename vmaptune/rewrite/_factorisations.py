"""Factorisations of matrices one at a time, on a CPU.

A batched LAPACK call waits, on a thread of XLA's pool, until the same pool has worked through its parts. With as many
such calls at once as the pool has threads, each waits for ever (JAX 0.10: two devices that initialise orthogonally, as
every recurrent layer of Flax does, are enough on two cores). A call for one matrix waits for nobody.

It takes matrices of any type, which LAPACK gets as they are: what isn't finite is its own matrix's alone.
"""

from __future__ import annotations

import math
from typing import Any

import jax
from jax import lax

from vmaptune.rewrite._walk import call_instead

# Each maps operands [..., m, n] to results that have the same leading axes.
FACTORISATIONS = {
    "cholesky", "eig", "eigh", "geqp3", "geqrf", "hessenberg", "householder_product", "lu", "ormqr", "qr", "schur",
    "svd", "triangular_solve", "tridiagonal", "tridiagonal_solve",
}  # fmt: skip


class Call:
    """A factorisation's primitive and parameters, hashed as the object that it is."""

    def __init__(self, primitive: Any, params: dict[str, Any], batch: int):
        self.primitive, self.params, self.batch = primitive, params, batch  # batch: how many leading axes

    def __call__(self, *operands: jax.Array) -> Any:
        """Results of operands `[..., m, n]`, a matrix at a time."""

        @jax.custom_batching.sequential_vmap
        def one(*matrices: jax.Array) -> Any:
            return self.primitive.bind(*matrices, **self.params)

        if not self.batch:
            return one(*operands)
        leading = operands[0].shape[: self.batch]
        flat = [x.reshape(math.prod(leading), *x.shape[self.batch :]) for x in operands]
        out = lax.map(lambda matrices: one(*matrices), flat)
        return jax.tree.map(lambda x: x.reshape(*leading, *x.shape[1:]), out)


def one_at_a_time(eqn: Any) -> Any:
    """The equation to compute in the place of a factorisation; others as they are."""
    if eqn.primitive.name not in FACTORISATIONS or not eqn.invars or eqn.invars[0].aval.ndim < 2:
        return eqn
    vectors = eqn.primitive.name == "tridiagonal_solve"  # its operands are diagonals
    batch = eqn.invars[0].aval.ndim - (1 if vectors else 2)
    return call_instead(eqn, eqn.primitive.name, (Call(eqn.primitive, dict(eqn.params), batch),))
