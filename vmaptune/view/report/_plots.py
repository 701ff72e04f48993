"""`study.plot`: the report's pictures one by one, as Plotly figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vmaptune.errors import InputError
from vmaptune.view.report import _budget, _course, _relations, _settings, _training
from vmaptune.view.report._gather import StudyData
from vmaptune.view.report._picture import Picture, to_figure
from vmaptune.view.report._write import data_of, write_report


class Plots:
    """A study's figures. Each method reads nothing but the ledger and returns a `plotly.graph_objects.Figure`.

    The study is read once, when the first figure is asked for; `study.plot.again()` reads it anew.
    Every method raises InputError when Plotly is not installed, or when the study has nothing to show there.
    """

    def __init__(self, directory: str | Path):
        self._directory = Path(directory)
        self._data: StudyData | None = None

    def __repr__(self) -> str:
        names = ", ".join(n for n in dir(self) if not n.startswith("_"))
        return f"<figures of {self._directory}: {names}>"

    def again(self) -> Plots:
        """The same, with what the ledger holds now."""
        return Plots(self._directory)

    def axis(self, name: str) -> Any:
        """Every trial's best value over training against one setting, with the rounds' boxes."""
        return self._figure(_settings.axis(self._of, self._known(name)))

    def isolation(self, name: str) -> Any:
        """The best trial of each bucket of one setting."""
        return self._figure(_settings.isolation(self._of, self._known(name)))

    def zoom(self) -> Any:
        """How each round's space lies in the first one."""
        return self._figure(_settings.zoom(self._of))

    def curves(self) -> Any:
        """The objective over training of all trials, the best few in front."""
        return self._figure(_training.curves(self._of))

    def train_valid(self) -> Any:
        """Training loss against validation."""
        return self._figure(_training.train_valid(self._of), "training loss in its curves")

    def parallel(self) -> Any:
        """Parallel coordinates of all settings and the objective."""
        return self._figure(_relations.parallel(self._of))

    def pair(self, x: str | None = None, y: str | None = None) -> Any:
        """Two settings against each other; by default the two that matter most."""
        names = [self._known(n) for n in (x, y) if n is not None]
        if len(names) == 1:
            raise InputError(f"plot.pair() takes two settings or none, but got only {names[0]!r}")
        return self._figure(_relations.pair(self._of, x, y), "second setting")

    def importance(self) -> Any:
        """How much each setting matters, with its uncertainty."""
        return self._figure(_relations.importance(self._of), "20 trials in one round")

    def infeasible(self) -> Any:
        """The share of infeasible trials in each part of each setting."""
        return self._figure(_course.infeasible(self._of), "infeasible trial")

    def budget(self) -> Any:
        """What stopping after so many trials would have given, with a band."""
        return self._figure(_budget.budget(self._of))

    def rungs(self) -> Any:
        """What early stopping kept at each rung."""
        return self._figure(_course.rungs(self._of), "trial that was stopped early")

    def random_not_grid(self) -> Any:
        """How many values of the most important setting were tried, and how many a grid of as many trials."""
        return self._figure(_relations.random_not_grid(self._of), "second setting")

    def occupancy(self) -> Any:
        """How many lanes were busy over time."""
        return self._figure(_course.occupancy(self._of), "record of busy lanes")

    def seconds(self) -> Any:
        """Where the study's time went."""
        return self._figure(_course.seconds(self._of), "result yet")

    def report(self, out: str | Path | None = None) -> Path:
        """Writes the whole report, by default into the study's directory. Returns its path."""
        return write_report(self._directory, out)

    @property
    def _of(self) -> StudyData:
        if self._data is None:
            self._data = data_of(self._directory)
        return self._data

    def _known(self, name: str) -> str:
        if name not in self._of.first:
            raise InputError(f"the space has no setting {name!r}; it has: {', '.join(self._of.first)}")
        return name

    def _figure(self, picture: Picture | None, missing: str = "") -> Any:
        if picture is None:
            raise InputError(f"{self._directory}: there is nothing to show there: the study has no {missing}")
        return to_figure(picture, len(self._of.rounds))
