"""What a CPU's compiler is spared, in the jaxpr of one lane's function after differentiation."""

from __future__ import annotations

from typing import Any

from vmaptune.rewrite._factorisations import one_at_a_time
from vmaptune.rewrite._products import faster_product
from vmaptune.rewrite._random import in_one_piece
from vmaptune.rewrite._walk import exchanged


def fit_for_cpu(jaxpr: Any) -> Any:
    """The jaxpr with products of gradients in the layout that is fast, factorisations one matrix at a time, and random
    bits in one piece."""
    return exchanged(jaxpr, lambda eqn: faster_product(one_at_a_time(in_one_piece(eqn))))
