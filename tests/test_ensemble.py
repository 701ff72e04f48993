"""Greedy ensemble selection against every ensemble there is."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmaptune.errors import InputError
from vmaptune.search.ensemble import greedy_ensemble


def squared_error(target):
    return lambda means: ((means - target) ** 2).reshape(len(means), -1).mean(1)


def plain_greedy(predictions, loss, size):
    """The paper's procedure in a plain loop, an ensemble at a time."""
    bag: list[int] = []
    path = []
    for _ in range(size):
        scores = [float(loss(predictions[[*bag, k]].mean(0)[None])[0]) for k in range(len(predictions))]
        best = min(range(len(scores)), key=lambda k: scores[k])
        bag.append(best)
        path.append(scores[best])
    end = path.index(min(path)) + 1
    return bag[:end], path


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), models=st.integers(1, 6), size=st.integers(1, 8))
def test_it_is_the_papers_procedure(seed, models, size):
    rng = np.random.default_rng(seed)
    target = rng.normal(size=(7, 2))
    predictions = target + rng.normal(size=(models, 7, 2)) * rng.uniform(0.1, 2, (models, 1, 1))
    loss = squared_error(target)
    found = greedy_ensemble(predictions, loss, size)
    bag, path = plain_greedy(predictions, loss, size)
    assert dict(zip(found.members, found.counts, strict=True)) == {m: bag.count(m) for m in bag}
    np.testing.assert_allclose(found.losses, path, rtol=1e-9)
    assert sum(found.weights) == pytest.approx(1)
    mean = np.tensordot(found.weights, predictions[list(found.members)], 1)
    assert loss(mean[None])[0] == pytest.approx(found.loss, rel=1e-9)
    assert found.loss <= loss(predictions).min() + 1e-12


def test_it_is_close_to_the_best_of_all_ensembles():
    """Independent errors: the best multiset of up to three among four, found by trying all."""
    ratios = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        target = rng.normal(size=40)
        predictions = target + rng.normal(size=(4, 40))
        loss = squared_error(target)
        every = [
            loss(predictions[list(bag)].mean(0)[None])[0]
            for n in (1, 2, 3)
            for bag in itertools.combinations_with_replacement(range(4), n)
        ]
        ratios.append(greedy_ensemble(predictions, loss, 3).loss / min(every))
    assert min(ratios) > 1 - 1e-9
    assert np.mean(np.isclose(ratios, 1)) > 0.5
    assert np.mean(ratios) < 1.05


def test_a_case_by_hand():
    # errors +1, -1 and +0.5: the pair of opposites is perfect, the best single model is the third
    predictions = np.array([[1.0, 1.0], [-1.0, -1.0], [0.5, 0.5]])
    found = greedy_ensemble(predictions, squared_error(np.zeros(2)), 3)
    # picks: 2 (0.25); then 1: (0.5 - 1) / 2 = -0.25 (0.0625); then 2 again: 0 (0)
    assert found.losses == pytest.approx((0.25, 0.0625, 0.0))
    assert found.members == (2, 1)
    assert found.counts == (2, 1)
    assert found.weights == pytest.approx((2 / 3, 1 / 3))


def test_ties_go_to_the_first_and_models_that_are_not_finite_are_never_picked():
    predictions = np.array([[np.nan, 0.0], [1.0, 1.0], [1.0, 1.0]])
    found = greedy_ensemble(predictions, squared_error(np.ones(2)), 4)
    assert found.members == (1,)
    assert found.counts == (1,)  # the smallest of equals
    with pytest.raises(InputError, match="at least one model with finite"):
        greedy_ensemble(predictions[:1], squared_error(np.ones(2)), 4)
    with pytest.raises(InputError, match="size must be"):
        greedy_ensemble(predictions, squared_error(np.ones(2)), 0)
