"""Computations exchanged, in the jaxpr of any function, for equal ones that run faster on many lanes."""

from vmaptune.rewrite._choose import Choice, default_choice, fastest, measure
from vmaptune.rewrite._columns import weights_in_columns
from vmaptune.rewrite._convolution import ConvShape, convolve
from vmaptune.rewrite._cpu import exact_on_cpu, fit_for_cpu
from vmaptune.rewrite._jaxpr import find_convolutions, with_fast_convolutions
from vmaptune.rewrite._memory import bytes_at_once
from vmaptune.rewrite._pooling import PoolShape, pool
from vmaptune.rewrite._precision import with_bfloat16_products
from vmaptune.rewrite._products import has_products, products_are_short
from vmaptune.rewrite._turned import NOTHING, Turned, turned, what_to_turn
from vmaptune.rewrite._walk import as_written, evaluated, is_as_written, rewrites_noted

__all__ = [
    "NOTHING",
    "Choice",
    "ConvShape",
    "PoolShape",
    "Turned",
    "as_written",
    "bytes_at_once",
    "convolve",
    "default_choice",
    "evaluated",
    "exact_on_cpu",
    "fastest",
    "find_convolutions",
    "fit_for_cpu",
    "has_products",
    "is_as_written",
    "measure",
    "pool",
    "products_are_short",
    "rewrites_noted",
    "turned",
    "weights_in_columns",
    "what_to_turn",
    "with_bfloat16_products",
    "with_fast_convolutions",
]
