"""What the rounds of a study try, and what is made of their results: the search, its zooms, the confirmation."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from vmaptune.search.coarse_to_fine import CoarseToFine
from vmaptune.search.confirm import Confirmed, finalists
from vmaptune.search.pbt import PBT
from vmaptune.search.proposer import proposer_for
from vmaptune.search.zoom import Scored, best
from vmaptune.space import Space
from vmaptune.store.ledger import TrialRow
from vmaptune.store.states import nothing_trained
from vmaptune.study._outcome import known
from vmaptune.study._population import Population
from vmaptune.study._rounds import Params
from vmaptune.study._stopping import stopping_lanes
from vmaptune.study._structure import within_padding

if TYPE_CHECKING:
    from vmaptune.study._run import StudyRun


class Search:
    """The rounds of one study as a search: one after the other, in one stream, or as populations."""

    def __init__(self, study: StudyRun):
        self.study = study
        self._proposer = proposer_for(study.options.method, study.first, study.options.seed)
        self._proposed: dict[int, list[Params]] = {}  # by round
        options = study.options
        self._decisions = CoarseToFine(
            study.first,
            options.seed,
            options.design,
            options.keep,
            options.margin,
            options.expand,
            options.repeats,
            options.enqueue,
        )
        if self._proposer is not None and self._proposer.note:
            study.counts.warn(self._proposer.note)

    def in_rounds(self) -> list[Scored]:
        """The search rounds, one after the other. Returns the last slice."""
        study = self.study
        slice_: list[Scored] = []
        number = 0
        while study.cut(number):
            found = study.rounds.standings(study.rounds.train(self.begin_round(number), self.keeps))
            slice_ = self._decisions.slice_of([*slice_, *found], study.budget.rounds[number])
            number += 1
            if self._proposer is not None:
                self._proposer.tell([(s.params, s.value) for s in found])
            elif number < len(study.budget.rounds):
                study.space = self._zoomed(study.space, slice_)
        return slice_

    def in_a_stream(self) -> list[Scored]:
        """All search rounds in one stream: when the trials of a round have all entered lanes and one is free, the
        next round begins, drawn from the zoom so far. Returns the last slice."""
        study = self.study
        study.rounds.train(self.begin_round(0), self.keeps)
        while study.counts.round + 1 < len(study.budget.rounds):  # no lane was free before the last trial ended
            study.space = self._zoomed(study.space, self._slice_so_far())
            if study.cut(study.counts.round + 1):
                study.rounds.train(self.begin_round(study.counts.round + 1), self.keeps)
        return self._slice_so_far()

    def as_populations(self) -> Scored | None:
        """Population-based training, each group a population of its own. Returns the best member, as it ended."""
        study = self.study
        rows = self.begin_round(0)
        snapshot, study.rounds.snapshot = study.rounds.snapshot, None
        params = {row.trial: dict(row.params) for row in rows}
        for decision in study.ledger.decisions("pbt"):  # of a study that goes on
            params |= {copy["trial"]: copy["params"] for copy in decision.data["copies"]}
        if not study.rounds.ended:
            study.groups.prepare([row.params for row in rows], ahead=True)
            study.training.restore_states()
            moment = snapshot.plain.get("population") if snapshot else None
            for group in study.groups:
                if snapshot and (moment is None or group.number < moment["group"]):
                    continue  # it had come to its end
                members = [row for row in rows if row.group == group.number]
                study.groups.wait_for(group)
                population = Population(study.training, group, members, PBT(), study.first)
                population.train(snapshot if moment and group.number == moment["group"] else None)
                params |= population.params
            study.rounds.end(rows, keep=True)
        (winner,) = best([study.rounds.scored(study.training.rows[row.trial]) for row in rows], 1) or (None,)
        if winner is None:
            self._warn_of_nothing()
            return None
        return replace(winner, params=params[winner.trial])

    def confirm(self) -> tuple[Scored | None, list[Confirmed]]:
        study = self.study
        standings = study.rounds.standings(study.rounds.searched())
        if study.pace:
            study.pace.confirmation(standings)
        chosen = self._decisions.finalists(standings, study.budget) or finalists(standings, 1)
        if not chosen:
            self._warn_of_nothing()
            return None, []
        if not study.budget.finalists:
            return chosen[0], []
        values: dict[int, list[float]] = {s.trial: [] for s in chosen}
        # a time buys all of its repeats at once: what is left of it when they are in, nobody knows
        wave = self._decisions.first_wave(values, study.budget)
        if study.pace:
            wave = dict.fromkeys(values, study.budget.repeats)
        params = {s.trial: s.params for s in chosen}
        while wave:
            study.counts.round, study.counts.phase = study.counts.round + 1, "confirm"
            settings = [(params[of], of) for of, times in wave.items() for _ in range(times)]
            for row in study.rounds.train(study.rounds.add("confirm", None, settings), keep=True):
                assert row.of is not None
                values[row.of].append(study.rounds.scored(row).value)
            wave = {} if study.pace else self._decisions.next_wave(values, study.budget)
        study.counts.trials = len(study.training.rows)  # fewer, where the winner was sure before
        ranked = self._decisions.ranked(values)
        study.rounds.decide(
            "confirm", {"ranked": [c.trial for c in ranked], "chances": [known(c.chance) for c in ranked]}
        )
        return next(s for s in standings if s.trial == ranked[0].trial), ranked

    def begin_next(self) -> None:
        """Fills free lanes with the next round's trials: once half of this one's have come to a rung or to their end,
        and few of them still wait for lanes of other groups."""
        study = self.study
        number = study.counts.round + 1
        if study.counts.phase != "search" or number >= len(study.budget.rounds):
            return
        rows = [row for row in study.training.rows.values() if row.round == study.counts.round]
        known = sum(row.state.ended or study.training.standing(row).rung > 0 for row in rows)
        if 2 * known >= len(rows) and study.training.waiting() <= stopping_lanes(study.options):
            slice_ = self._slice_so_far()
            if not slice_:  # those known so far went wrong: the others are waited for
                return
            study.space = self._zoomed(study.space, slice_)
            if study.cut(number):
                study.training.add(self.begin_round(number), self.keeps)

    def begin_round(self, number: int) -> list[TrialRow]:
        """Draws a search round and writes it down."""
        study = self.study
        study.counts.round, study.counts.phase = number, "search"
        there = [row for row in study.training.rows.values() if row.round == number]
        self._resize(number)
        if there and self._proposer is None:  # another library's sampler is to be asked again what it was asked
            return there
        repeats, first = study.options.repeats, len(study.training.rows)
        settings: list[tuple[Params, int | None]] = []
        left_out = len(self._decisions.enqueued) - study.budget.rounds[0] // repeats
        if number == 0 and left_out > 0:  # of a study by time
            study.counts.warn(f"{left_out} of the enqueued configurations had no room in the first round")
        for i, params in enumerate(self.settings_of(number)):
            settings += [(params, None), *[(params, first + i * repeats)] * (repeats - 1)]
        return study.rounds.add("search", study.space, settings)

    def settings_of(self, number: int) -> list[Params]:
        """What a round tries, drawn from the space as it is now."""
        study = self.study
        n = study.budget.rounds[number] // study.options.repeats
        if self._proposer is not None:
            if number not in self._proposed:
                self._proposed[number] = self._proposer.ask(n)
            return self._proposed[number]
        return self._decisions.settings(study.space, self._known(number), number, study.budget.rounds[number])

    def _known(self, number: int) -> list[Scored]:
        """What a round's settings are drawn from: the trials of the rounds before, but those that said nothing yet."""
        study = self.study
        rows = [row for row in study.rounds.searched() if row.round < number] if number else []
        return [s for s in study.rounds.standings(rows) if s.rung > 0]

    def _resize(self, number: int) -> None:
        """Before the last round: the confirmation as large as the noise asks for, the round with what that leaves."""
        study = self.study
        budget = study.budget
        if number + 1 != len(budget.rounds) or study.pace or self._proposer is not None or not budget.finalists:
            return
        for row in study.ledger.decisions("budget"):  # of a study that goes on
            if row.round == number:
                study.budget = replace(budget, rounds=tuple(row.data["rounds"]), repeats=row.data["repeats"])
                return
        study.budget = self._decisions.resized(budget, number, self._known(number))
        if study.budget != budget:
            study.rounds.decide("budget", {"rounds": study.budget.rounds, "repeats": study.budget.repeats})

    def _zoomed(self, space: Space, slice_: list[Scored]) -> Space:
        study = self.study
        if not slice_:
            study.counts.warn(
                f"round {study.counts.round}: every trial was infeasible, so the next round draws from the same space"
            )
            return space
        finer = self._decisions.finer(space, slice_)
        if study.options.expand:
            finer, notes = within_padding(finer, study.first, study.groups.statics)
            for note in notes:
                study.counts.warn(note)
        study.rounds.decide("zoom", {"slice": [s.trial for s in slice_], "space": finer.to_json()})
        return finer

    def _warn_of_nothing(self) -> None:
        why = nothing_trained(row.reason for row in self.study.training.rows.values())
        self.study.counts.warn(f"every trial was infeasible: {why}")

    def _slice_so_far(self) -> list[Scored]:
        """The best of all trials so far: those that have ended, and those that train by the rung they reached."""
        study = self.study
        found = study.rounds.standings(study.rounds.searched())
        return self._decisions.slice_of(found, study.budget.rounds[study.counts.round])

    @property
    def keeps(self) -> bool:
        """Whether the search's own states are wanted: nothing will be confirmed, so the winner's is the model."""
        return not self.study.budget.finalists
