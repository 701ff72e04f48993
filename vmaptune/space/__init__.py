"""Scales, and the way between a sample and the unit cube. NumPy only."""

from vmaptune.space._designs import METHODS, unit_points
from vmaptune.space._distributions import (
    Distribution,
    choice,
    distribution_from_json,
    lograndint,
    loguniform,
    ordinal,
    randint,
    reverseloguniform,
    uniform,
)
from vmaptune.space._expressions import parse_expression
from vmaptune.space._given import completed
from vmaptune.space._held import check_held, check_value, held_bounds, held_number
from vmaptune.space._space import Space

__all__ = [
    "METHODS",
    "Distribution",
    "Space",
    "check_held",
    "check_value",
    "choice",
    "completed",
    "distribution_from_json",
    "held_bounds",
    "held_number",
    "lograndint",
    "loguniform",
    "ordinal",
    "parse_expression",
    "randint",
    "reverseloguniform",
    "uniform",
    "unit_points",
]  # fmt: skip
