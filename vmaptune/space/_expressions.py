"""What a person types after `--set name=`: a value, or a call of a constructor. Read, never run."""

from __future__ import annotations

import ast
import re
from typing import Any

from vmaptune.errors import InputError
from vmaptune.space import _distributions
from vmaptune.space._distributions import LISTED, SCALES, Distribution

CONSTRUCTORS = {name: getattr(_distributions, name) for name in (*SCALES, *LISTED)}
WAY_OUT = "write a value (0.01, 64, relu) or e.g. loguniform(1e-4, 1)"


def parse_expression(text: str) -> Distribution | Any:
    """A distribution or a plain value; a bare word is a string.

    Raises:
      InputError: anything else.
    """
    text = text.strip()
    if re.fullmatch(r"[A-Za-z_][\w.+-]*", text) and text not in ("True", "False", "None"):
        return text
    try:
        node = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError) as error:
        raise InputError(f"{text!r} cannot be read: {WAY_OUT}") from error
    if not isinstance(node, ast.Call):
        return _literal(node, text)
    function = node.func
    if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name) and function.value.id == "vt":
        name = function.attr
    else:
        name = function.id if isinstance(function, ast.Name) else ast.unparse(function)
    if name not in CONSTRUCTORS:
        raise InputError(f"{name!r} is none of {', '.join(CONSTRUCTORS)}: {WAY_OUT}")
    if any(k.arg is None for k in node.keywords) or any(isinstance(a, ast.Starred) for a in node.args):
        raise InputError(f"{text!r} cannot be read: {WAY_OUT}")
    args = [_literal(a, text) for a in node.args]
    named = {k.arg: _literal(k.value, text) for k in node.keywords if k.arg}
    try:
        return CONSTRUCTORS[name](*args, **named)
    except TypeError as error:
        raise InputError(f"{text!r}: {error}; {WAY_OUT}") from error


def _literal(node: ast.expr, text: str) -> Any:
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError) as error:
        raise InputError(f"{ast.unparse(node)!r} in {text!r} is no plain value: {WAY_OUT}") from error
