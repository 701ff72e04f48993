"""Numbers as a person would write them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from vmaptune.space import Distribution, Space


def number(value: Any, digits: int = 4) -> str:
    """A number with a few significant digits; other values as they are."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if not math.isfinite(value):
        return str(value)
    if value and (abs(value) >= 1e5 or abs(value) < 1e-3):
        return f"{value:.{digits - 1}e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:.{digits}g}"


def setting(value: Any, d: Distribution | None = None) -> str:
    """A setting's value, with enough digits to be used; of the scale of 1 - x as its distance from 1 too."""
    if not isinstance(value, float):
        return str(value)
    if d is not None and d.kind == "reverseloguniform" and 0.9 < value < 1:
        return f"1 - {number(1 - value)}  ({value:.8g})"
    text = number(value)
    return f"{value:.8g}" if text == "1" else text


def existing(params: Mapping[str, Any], space: Space | None = None) -> dict[str, Any]:
    """The settings of a configuration that exist in it: where one does not, it has None, which is an option too."""
    there = space.active(params) if space is not None and all(name in params for name in space) else {}
    return {name: value for name, value in params.items() if there.get(name, True)}


def configuration(params: Mapping[str, Any], space: Space | None = None) -> dict[str, str]:
    """The same in words."""
    kinds = {name: space[name] if space is not None and name in space else None for name in params}
    return {name: setting(value, kinds[name]) for name, value in existing(params, space).items()}


def duration(seconds: float) -> str:
    """Seconds as 42s, 3m05s or 2h10m."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def size(count: float) -> str:
    """Bytes as KiB, MiB or GiB."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def counted(count: int, what: str) -> str:
    """1 round, 2 rounds."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def chance(value: Any) -> str:
    """A chance in per cent: never 0 or 100 %, which so few seeds can't show; nothing where it is not known."""
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        return ""
    return "over 99%" if value > 0.99 else "below 1%" if value < 0.01 else f"{value:.0%}"


def interval(found: Mapping[str, Any]) -> str:
    """The 95 % interval of a confirmed mean; nothing where it is not known."""
    low, high = found.get("low"), found.get("high")
    return f"{number(low)} to {number(high)}" if isinstance(low, float) and isinstance(high, float) else ""


def single_values(best: Mapping[str, Any]) -> str:
    """The best single value of the search, and whose it is: it is no value of the winner where it is another's."""
    text = f"best single value seen while searching: {number(best['best_seen'])}"
    of = best.get("best_seen_trial")
    if of is None:  # of an earlier version
        return text
    if of == best["trial"]:
        return f"{text}, by this configuration"
    seen = best.get("seen")
    own = f"; this one had {number(seen)}" if isinstance(seen, float) else ""
    return f"{text}, by another configuration, trial {of}{own}"


def left_open(best: Mapping[str, Any]) -> str:
    """What the size of the validation part leaves open in the winner's value; nothing where it was not measured."""
    error, examples = best.get("valid_error"), best.get("valid_examples")
    if not isinstance(error, float) or not examples:
        return ""
    return f"{counted(examples, 'validation example')} leave ± {number(error, 2)} in it, whatever the seed"
