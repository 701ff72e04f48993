"""How a person's functions get their arguments: by name, and by position where a name says nothing."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from vmaptune.errors import InputError

# What people also call them.
ALIASES = {
    "rng": "key", "prng": "key", "rng_key": "key", "prng_key": "key", "random_key": "key", "PRNGKey": "key",
    "hparams": "hp", "hyperparameters": "hp", "num_steps": "steps", "n_steps": "steps", "total_steps": "steps",
}  # fmt: skip
# Names that say something that a function without them in its list can't be given.
TAKEN = {"hp", "key", "rngs", "step", "steps", "train", "training", "is_training", "deterministic", "opt_state"}


@dataclass(frozen=True)
class Signature:
    """A function that a person writes, and what it may take.

    An argument with one of these names gets what the name says, wherever it stands and whether or not it has a default.
    One with another name and a default keeps its default. One with another name and none gets the next of `by_position`
    that no other has taken.

    Args:
      function: its name in messages.
      by_position: the names of what it is given, in the order that is promised.
      by_name: the names of what else it may ask for.
    """

    function: str
    by_position: tuple[str, ...]
    by_name: tuple[str, ...] = ()

    def check(self, function: Callable[..., Any], settings: Collection[str] = (), place: str = "") -> None:
        """Finds out whether `function` can be called; `settings` are names of hyperparameters, which `hp` holds.

        Raises:
          InputError: an argument that nothing can be given to.
        """
        _matched(self, function, tuple(settings), place)

    def call(self, function: Callable[..., Any], given: Mapping[str, Any]) -> Any:
        """Calls `function` with what of `given`, values by name, it takes."""
        positional, named = _matched(self, function, (), "")
        return function(*(given[name] for name in positional), **{p: given[name] for p, name in named.items()})

    def asks_for(self, function: Callable[..., Any], name: str) -> bool:
        """Whether `function` takes `name`."""
        positional, named = _matched(self, function, (), "")
        return name in positional or name in named.values()

    def adapter(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, called with everything, in the order of `by_position`."""
        if getattr(function, "takes_everything", False):
            return function

        def adapted(*args: Any) -> Any:
            return self.call(function, dict(zip(self.by_position, args, strict=False)))

        adapted.takes_everything = True  # type: ignore[attr-defined]
        return adapted


def _matched(
    signature: Signature, function: Callable[..., Any], settings: tuple[str, ...], place: str
) -> tuple[tuple[str, ...], dict[str, str]]:
    """What goes in by position, and what by which parameter's name."""
    parameters = _parameters(function)
    if parameters is None:
        return signature.by_position, {}
    known = {*signature.by_position, *signature.by_name}
    meant: dict[str, str] = {p.name: name for p in parameters if (name := _meant(p.name, known)) in known}
    left = [name for name in signature.by_position if name not in meant.values()]
    positional: list[str] = []
    named: dict[str, str] = {}
    in_order = True  # nothing was left out so far, so that the next can go in by position
    for p in parameters:
        if p.kind is p.VAR_POSITIONAL:
            positional += left if in_order else []
        if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
            continue
        what = meant.get(p.name)
        if what is None and p.default is p.empty:
            by_place = p.kind is not p.KEYWORD_ONLY and _meant(p.name, TAKEN) not in TAKEN and p.name not in settings
            if not (left and by_place):
                raise InputError(_refusal(signature, p, p.name in settings, place))
            what = left.pop(0)
        if what is None:
            in_order = False
        elif p.kind is p.KEYWORD_ONLY or not in_order:
            named[p.name] = what
        else:
            positional.append(what)
    return tuple(positional), named


def _meant(name: str, known: Collection[str]) -> str:
    return name if name in known else ALIASES.get(name, name)


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter] | None:
    """A function's parameters but those that a person has bound; None where Python does not know them."""
    if isinstance(function, type) and "__init__" in function.__dict__:  # what makes it may say (*args, **kwargs)
        function = functools.partial(function.__dict__["__init__"], None)
    try:
        found = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return None
    bound = function.keywords if isinstance(function, functools.partial) else {}
    return [p for p in found if p.name not in bound]


def _refusal(signature: Signature, parameter: inspect.Parameter, is_setting: bool, place: str) -> str:
    names = ", ".join((*signature.by_position, *signature.by_name))
    way = (
        f"take it from hp (hp.{parameter.name})" if is_setting
        else "give it one of these names, or a default of its own"
    )  # fmt: skip
    return (
        f"{signature.function}(): its arguments must be some of {names}, but `{parameter.name}` is none of them; "
        f"{way}{place}"
    )
