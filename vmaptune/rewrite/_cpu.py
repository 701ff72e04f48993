"""What a CPU's compiler is spared, in the jaxpr of one lane's function after differentiation."""

from __future__ import annotations

from typing import Any

from vmaptune.rewrite._columns import short_rows_in_columns
from vmaptune.rewrite._factorisations import one_at_a_time
from vmaptune.rewrite._products import faster_product, long_products_as_they_are_used
from vmaptune.rewrite._quotients import faster_quotient
from vmaptune.rewrite._random import in_one_piece
from vmaptune.rewrite._recurrent import sums_after_loops
from vmaptune.rewrite._reductions import faster_reduction
from vmaptune.rewrite._walk import exchanged


def fit_for_cpu(jaxpr: Any, *, compiled_products: bool = False, one_batch: bool = False) -> Any:
    """The jaxpr with products in the layout that is fast, divisions by one number as multiplications, factorisations
    one matrix at a time, random bits in one piece, and short rows in columns.

    `compiled_products` says that XLA compiles products with the program, instead of calling its library of kernels:
    sums and maxima of rows, which that library would do as well, are exchanged, too, and a recurrent network's
    gradients are summed after its loop. `one_batch` says that all lanes train on the same batch.
    """

    def fitted(eqn: Any) -> Any:
        eqn = faster_product(one_at_a_time(in_one_piece(eqn)), compiled_products, one_batch)
        eqn = faster_quotient(eqn)
        return faster_reduction(eqn) if compiled_products else eqn

    jaxpr = sums_after_loops(jaxpr) if compiled_products else long_products_as_they_are_used(jaxpr)
    return short_rows_in_columns(exchanged(jaxpr, fitted))


def exact_on_cpu(jaxpr: Any, *, as_written: bool = False) -> Any:
    """The jaxpr with what changes no bit: factorisations one matrix at a time, without which a batch of them may wait
    for ever, and, unless it stays `as_written`, random bits in one piece."""
    return exchanged(jaxpr, one_at_a_time if as_written else lambda eqn: one_at_a_time(in_one_piece(eqn)))
