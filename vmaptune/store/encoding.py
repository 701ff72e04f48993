"""How a value is written into the ledger and read back, exactly.

SQLite turns NaN into NULL and -0.0 into 0.0, and JSON has neither infinities nor tuples. So floats that a
REAL column cannot hold are written as text, and JSON carries tags: `{"$float": "nan"}`, `{"$tuple": [...]}`,
and `{"$dict": [[key, value], ...]}` for a dict with a key that begins with "$". Every float comes back to the
bit, except that all NaNs are one NaN.
"""

import json
import math
from typing import Any

from vmaptune.errors import InputError, StudyError

_FROM_TEXT = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf, "-zero": -0.0}


def encode_float(value: Any) -> float | str | None:
    """What a REAL column gets: the float itself, a word for one that SQLite would change, None for None."""
    if value is None:
        return None
    number = float(value)
    if not math.isfinite(number):
        return str(number)
    return "-zero" if number == 0 and math.copysign(1.0, number) < 0 else number


def decode_float(stored: Any) -> float | None:
    """The float that `encode_float` was given. Raises StudyError for what it never writes."""
    if isinstance(stored, str) and stored in _FROM_TEXT:
        return _FROM_TEXT[stored]
    if stored is None or isinstance(stored, float):
        return stored
    raise StudyError(f"expected a number, but the ledger holds {stored!r}")


def encode_text(value: str | None) -> str | None:
    """Text that SQLite can store: lone surrogates, which UTF-8 has not, become backslash escapes."""
    return None if value is None else str(value).encode("utf-8", "backslashreplace").decode("utf-8")


def to_json(value: Any, name: str = "value") -> str:
    """Strict JSON for None, bool, int, float, str, list, tuple and dict, nested; array scalars are converted.

    `name` is what the message calls the value. Raises InputError for any other type and for a key that is not
    a string.
    """
    return json.dumps(_plain(value, name), allow_nan=False, separators=(",", ":"))


def from_json(text: str) -> Any:
    """The value that `to_json` was given. Raises StudyError when the text is not what `to_json` writes."""
    try:
        return _DECODER.decode(text)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise StudyError(f"expected JSON, but the ledger holds {text!r:.80}: {error}") from error


def _plain(value: Any, name: str) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"$float": str(float(value))}
    if isinstance(value, tuple):
        return {"$tuple": [_plain(item, f"{name}[{index}]") for index, item in enumerate(value)]}
    if isinstance(value, list):
        return [_plain(item, f"{name}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, dict):
        return _plain_dict(value, name)
    if getattr(value, "shape", None) == () and hasattr(value, "item"):  # a scalar of NumPy or JAX
        item = value.item()
        if isinstance(item, bool | int | float | str):
            return _plain(item, name)
    raise InputError(
        f"{name} cannot be stored: {type(value).__name__} ({value!r:.80}) is not None, a bool, an int, a "
        "float, a string, or a list, tuple or dict of these; give it a string for a name "
        "and look the object up by that"
    )


def _plain_dict(value: dict[Any, Any], name: str) -> Any:
    for key in value:
        if not isinstance(key, str):
            raise InputError(f"{name} cannot be stored: its key {key!r} is not a string; use str keys")
    items = {str.__str__(key): _plain(item, f"{name}.{key}") for key, item in value.items()}
    if any(key.startswith("$") for key in items):
        return {"$dict": [[key, item] for key, item in items.items()]}
    return items


def _untag(found: dict[str, Any]) -> Any:
    if len(found) != 1:
        return found
    (tag, content), *_ = found.items()
    if tag == "$float":
        return _FROM_TEXT[content]
    if tag == "$tuple":
        return tuple(content)
    if tag == "$dict":
        return dict(content)
    return found


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


_DECODER = json.JSONDecoder(object_hook=_untag, parse_constant=_refuse)  # json.loads makes one for each text
