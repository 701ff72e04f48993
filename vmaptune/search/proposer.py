"""Samplers of other libraries: a small protocol, and Optuna's samplers behind it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from vmaptune.errors import InputError
from vmaptune.space import Distribution, Space

Params = dict[str, Any]
PREFIX = "optuna:"
OPTUNA = ("tpe", "gp", "cmaes", "qmc", "random")
METHODS = tuple(PREFIX + name for name in OPTUNA)
NEEDS = {"gp": "torch", "cmaes": "cmaes"}
NO_LISTS = {"cmaes": "CMA-ES", "qmc": "a quasi-random sequence"}  # samplers that have no place for a category
NO_VALUE = 1e9  # told of a trial that is not finite while no other has a value


class Proposer(Protocol):
    """Something that proposes settings and learns from what came of them.

    It must be deterministic: made anew with the same arguments, asked and told the same, it proposes the same. A study
    that goes on after a kill relies on that.
    """

    note: str | None  # what a person should know of the way in which it searches this space

    def ask(self, n: int) -> list[Params]:
        """`n` settings to train side by side."""

    def tell(self, results: Sequence[tuple[Params, float]]) -> None:
        """What the settings of the last `ask` came to, in their order; lower is better, NaN is not finite."""


def proposer_for(method: str, space: Space, seed: int) -> Proposer | None:
    """The sampler that `method` names, or None where it is one of the package's own methods.

    Raises:
      InputError: the library is not installed.
    """
    return OptunaProposer(space, method.removeprefix(PREFIX), seed) if method.startswith(PREFIX) else None


class OptunaProposer:
    """One of Optuna's samplers. Each setting is searched in the unit cube, in which its own scale is even, so that
    every scale, a zero and a condition work; a list is an integer or a category."""

    def __init__(self, space: Space, name: str, seed: int):
        self.space = space
        self._optuna = _optuna()
        self._study = self._optuna.create_study(sampler=self._sampler(name, seed % 2**32))
        self._spaces = {name: self._distribution(d) for name, d in space.items()}
        self._asked: list[tuple[Any, Params]] = []
        lists = [setting for setting, d in space.items() if d.kind == "choice"]
        drawn = f"{', '.join(lists)} {'is' if len(lists) == 1 else 'are'} drawn at random"
        self.note = f"{drawn}: {NO_LISTS[name]} has no place for a choice" if lists and name in NO_LISTS else None
        self._worst = -math.inf

    def ask(self, n: int) -> list[Params]:
        """`n` settings to train side by side."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trials = [self._study.ask(self._spaces) for _ in range(n)]
        points = np.array([[self._unit(name, t.params[name]) for name in self.space] for t in trials])
        rows = self.space.rows(self.space.from_unit(points))
        self._asked = list(zip(trials, rows, strict=True))
        return rows

    def tell(self, results: Sequence[tuple[Params, float]]) -> None:
        """Results of the last `ask`, in its order. One that is not finite counts as the worst that was seen.

        Raises:
          InputError: other settings than those that were asked for: another version of Optuna, most likely.
        """
        self._worst = max([self._worst, *(v for _, v in results if math.isfinite(v))])
        bad = self._worst if math.isfinite(self._worst) else NO_VALUE
        for (trial, params), (told, value) in zip(self._asked, results, strict=True):
            if told != params and self.space.held(told) != params:
                raise InputError(
                    f"the study's trials must be those that Optuna {self._optuna.__version__} proposes, but it "
                    f"proposes {params} where the study has {told}; go on with the version that began it"
                )
            self._study.tell(trial, value if math.isfinite(value) else bad)
        self._asked = []

    def _sampler(self, name: str, seed: int) -> Any:
        samplers = self._optuna.samplers
        makers = {
            "tpe": lambda: samplers.TPESampler(seed=seed, constant_liar=True),
            "gp": lambda: samplers.GPSampler(seed=seed),
            "cmaes": lambda: samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False),
            "qmc": lambda: samplers.QMCSampler(seed=seed, scramble=True, warn_independent_sampling=False),
            "random": lambda: samplers.RandomSampler(seed=seed),
        }
        try:
            if name in NEEDS:
                __import__(NEEDS[name])
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return makers[name]()
        except ImportError:
            raise InputError(
                f"--method {PREFIX}{name} needs {NEEDS.get(name, 'Optuna')}, which is not installed: "
                f"pip install {NEEDS.get(name, 'optuna')}"
            ) from None

    def _distribution(self, d: Distribution) -> Any:
        kinds = self._optuna.distributions
        if d.options is None:
            return kinds.FloatDistribution(0.0, 1.0)
        if d.kind == "choice":
            return kinds.CategoricalDistribution(tuple(range(len(d.options))))
        return kinds.IntDistribution(0, len(d.options) - 1)

    def _unit(self, name: str, found: Any) -> float:
        options = self.space[name].options
        return float(found) if options is None else (found + 0.5) / len(options)


def _optuna() -> Any:
    try:
        import optuna  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        raise InputError(
            "--method optuna:... needs Optuna, which is not installed: pip install 'vmaptune[optuna]'"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
