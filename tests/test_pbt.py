"""Population-based training: the paper's toy, its truncation, and settings that stay in their space."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vmaptune as vt
from vmaptune.errors import InputError
from vmaptune.search.pbt import PBT, Copy, exploit, explore, generation, lineage

TOY = vt.Space({"h0": vt.uniform(0, 1), "h1": vt.uniform(0, 1)})


def toy(theta):
    """The paper's objective, section 4.1.1 (figure 2): to be maximised, and never seen by the training."""
    return 1.2 - (theta**2).sum(-1)


def train_toy(theta, h, steps):
    """Gradient ascent on the surrogate 1.2 - h0 theta0^2 - h1 theta1^2."""
    for _ in range(steps):
        theta = theta - 0.01 * 2 * h * theta
    return theta


def test_the_papers_toy():
    starts = np.array([[0.9, 0.9], [0.9, 0.9]])
    first = np.array([[1.0, 0.0], [0.0, 1.0]])
    fixed = train_toy(starts, first, 2000)
    assert toy(fixed).max() < 0.3901  # 1.2 - 0.81: one of the two never moves
    options = PBT(truncation=0.5, every=4)
    theta, params = starts, [dict(zip(("h0", "h1"), row.tolist(), strict=True)) for row in first]
    for step in range(4, 401, 4):
        h = np.array([[p["h0"], p["h1"]] for p in params])
        theta = train_toy(theta, h, 4)
        copies = generation(TOY, ("h0", "h1"), (0, 1), list(-toy(theta)), params, options, 0, step)
        for copy in copies:
            theta = theta.copy()
            theta[copy.trial] = theta[copy.parent]
            params[copy.trial] = copy.params
    assert toy(theta).max() > 1.19


def test_truncation_by_hand():
    values = [5.0, 1.0, 3.0, 2.0, 4.0, math.nan]
    # 20 % of six is one; the one that is not finite is the worst: it copies the best
    assert exploit(values, 0.2).tolist() == [0, 1, 2, 3, 4, 1]
    # half is three: worst to best are 5 (nan), 0, 4; best are 1, 3, 2
    assert exploit(values, 0.5).tolist() == [3, 1, 2, 3, 2, 1]
    # all that are not finite are replaced, beyond the share
    assert exploit([math.inf, math.nan, 1.0, 2.0], 0.25).tolist() == [2, 2, 2, 3]
    assert exploit([math.nan] * 3, 0.2).tolist() == [0, 1, 2]
    assert exploit([1.0, 1.0, 1.0], 0.4).tolist() == [0, 1, 0]
    assert exploit([2.0], 0.2).tolist() == [0]


MIXED = vt.Space(
    {
        "rate": vt.loguniform(1e-5, 1.0),
        "beta": vt.reverseloguniform(0.5, 0.999),
        "decay": vt.loguniform(1e-6, 0.1, or_zero=0.2),
        "width": vt.ordinal([8, 16, 32, 64]),
        "act": vt.choice(["relu", "gelu"]),
        "count": vt.randint(2, 9),
    }
)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**31), trial=st.integers(0, 999), step=st.integers(0, 10**6))
def test_explored_settings_are_in_the_space_and_near(seed, trial, step):
    start = {n: v[0].item() if hasattr(v[0], "item") else v[0] for n, v in MIXED.sample(1, seed).items()}
    near = explore(MIXED, start, PBT(resample=0.0, perturbation=0.1), (seed, trial, step))
    assert near == explore(MIXED, start, PBT(resample=0.0, perturbation=0.1), (seed, trial, step))
    assert list(near) == list(MIXED)
    for name, d in MIXED.items():
        assert d.contains(near[name]), name
        if name == "act" or start[name] == 0:
            assert near[name] == start[name]
            continue
        low, high = d.scaled_bounds
        moved = abs(float(d.to_scaled([near[name]])[0] - d.to_scaled([start[name]])[0]))
        assert moved <= (1.0 if d.options else 0.1 * (high - low) + (1.0 if d.is_integer else 1e-9))


def test_settings_that_shape_the_state_come_with_it():
    params = [{"rate": 0.1, "beta": 0.9, "decay": 0.0, "width": 8, "act": "relu", "count": 3},
              {"rate": 0.2, "beta": 0.9, "decay": 0.0, "width": 64, "act": "gelu", "count": 4}]  # fmt: skip
    (copy,) = generation(MIXED, ("rate", "beta"), (7, 9), [2.0, 1.0], params, PBT(resample=1.0), 0, 50)
    assert (copy.trial, copy.parent, copy.step, copy.value, copy.parent_value) == (7, 9, 50, 2.0, 1.0)
    assert {n: copy.params[n] for n in ("width", "act", "decay", "count")} == {
        "width": 64,
        "act": "gelu",
        "decay": 0.0,
        "count": 4,
    }
    assert copy.params["rate"] != params[1]["rate"]


def test_a_lineage_follows_the_copies_back():
    def copy(step, trial, parent):
        return Copy(step, trial, parent, 1.0, 0.0, {})

    copies = [copy(10, 1, 0), copy(10, 3, 2), copy(20, 2, 1), copy(20, 0, 3), copy(30, 1, 2)]
    assert [(c.step, c.trial, c.parent) for c in lineage(copies, 1)] == [(10, 1, 0), (20, 2, 1), (30, 1, 2)]
    assert [(c.step, c.trial) for c in lineage(copies, 0)] == [(10, 3), (20, 0)]
    assert lineage(copies, 9) == []


def test_mistakes_are_told():
    for bad in ({"truncation": 0.6}, {"truncation": 0}, {"perturbation": -1.0}, {"resample": 2}, {"every": -1}):
        with pytest.raises(InputError, match=next(iter(bad))):
            PBT(**bad)
    assert PBT().interval(400) == 20
    assert PBT(every=7).interval(400) == 7
