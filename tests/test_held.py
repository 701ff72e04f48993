"""The ledger names the number that the lane received; what a lane cannot hold is refused with the way out."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vmaptune as vt
from vmaptune.cli import main
from vmaptune.cli._panda import Hands
from vmaptune.search.pbt import PBT, generation
from vmaptune.search.zoom import Scored, zoom
from vmaptune.space import check_held
from vmaptune.store.states import State
from vmaptune.study._panda import Panda

TINY = float(np.finfo(np.float32).tiny)
NEAR_1 = {"beta": vt.reverseloguniform(0.9, 1 - 1e-7)}
WIDE = {"rate": vt.loguniform(2e-38, 1e38), "small": vt.uniform(-0.1, 1e-30, or_zero=0.3)}


def experiment(space, **parts) -> vt.Experiment:
    """Its metrics are the bits of what the lane received, of each hyperparameter."""

    def evaluate(state, hp):
        bits = {n: jax.lax.bitcast_convert_type(jnp.float32(v), jnp.int32) for n, v in hp.items()}
        halves = {f"{n}.{k}": (b >> 16 * k) & 0xFFFF for n, b in bits.items() for k in (0, 1)}
        return {"loss": state["x"]} | {n: h.astype(jnp.float32) for n, h in halves.items()}

    task = vt.Task(lambda hp, key: {"x": jax.random.normal(key)}, lambda s, hp, key: {"x": 0.9 * s["x"]}, evaluate)
    return vt.Experiment(space=space, task=task, steps=4, **parts)


def received(trial, name: str) -> float:
    low, high = (int(trial.metrics[f"{name}.{k}"]) for k in (0, 1))
    return float(np.array([low | high << 16], np.uint32).view(np.float32)[0])


@pytest.mark.parametrize("space", [NEAR_1, WIDE])
def test_the_ledger_names_what_the_lane_received(space, tmp_path):
    study = vt.run(experiment(space), trials=48, rounds=2, out=tmp_path / "s", expand=True, plan="devices=1")
    assert {t.of is None for t in study.trials()} == {True, False}
    for trial in study.trials(state=State.COMPLETE):
        for name in space:
            assert trial.params[name] == received(trial, name)
            assert trial.params[name] not in (1.0, np.inf)
            assert space[name].or_zero or trial.params[name] != 0.0


REFUSED = [
    (vt.reverseloguniform(0.9, 1 - 1e-9), ["becomes exactly 1", "1 - x", "0.99999994"]),
    (vt.loguniform(1e-60, 1e-3), ["becomes 0", "1.18e-38", "or_zero"]),
    (vt.loguniform(1e-40, 1e-3), ["1e-40", "becomes 0"]),  # a denormal number, which programs flush
    (vt.loguniform(1, 1e60), ["infinite", "3.40282e+38"]),
    (vt.uniform(-1e39, 1), ["infinite"]),
    (vt.uniform(0.1, 0.1 + 1e-10), ["apart", "wider"]),
    (vt.uniform(1000, 1000.1, step=1e-5), ["apart"]),
    (vt.uniform(0, 1e-39, step=1e-40), ["becomes 0"]),
    (vt.choice([0.1, 0.1 + 1e-10]), ["apart"]),
    (vt.choice([1e-46, 1]), ["becomes 0", "static=True"]),
    (vt.ordinal([0.9, 1 - 1e-7 / 3]), ["becomes 1 - 5.96e-08"]),
    (vt.choice([1.5, 2**24 + 1]), ["16777216", "static=True"]),
    (vt.choice([1, 3_000_000_000]), ["2147483647", "3000000000", "static=True"]),
    (vt.choice([1, 2**70]), ["2147483647", str(2**70), "static=True"]),
    (vt.randint(-(2**40), 2**40, step=2**36), ["-2147483648", str(-(2**40))]),
    (vt.choice([0.5, 10**400]), ["infinite"]),
    (-1e-300, ["becomes 0"]),
    (5_000_000_000, ["2147483647"]),
]  # fmt: skip


@pytest.mark.parametrize("case", range(len(REFUSED)))
def test_what_a_lane_cannot_hold_is_refused_before_anything_is_written(case, tmp_path):
    distribution, words = REFUSED[case]
    with pytest.raises(vt.InputError) as raised:
        experiment({"it": distribution})
    for word in ["it: ", *words]:
        assert word in str(raised.value)
    with pytest.raises(vt.InputError) as again:
        vt.check(experiment({"it": 1}), changes={"it": distribution})
    assert str(again.value) == str(raised.value)
    with pytest.raises(vt.InputError):
        vt.run(experiment({"it": 1}), changes={"it": distribution}, trials=4, out=tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_static_numbers_and_those_for_other_trainers_are_not_limited():
    space = {"big": vt.choice([1, 2**70], static=True), "eps": vt.choice([1e-60], static=True)}
    experiment(space)
    sampler = vt.Sampler({"big": vt.choice([1, 2**70]), "beta": vt.reverseloguniform(0.9, 1 - 1e-12)}, trials=8)
    asked = sampler.ask(8)
    assert {a.params["big"] for a in asked} == {1, 2**70}
    assert max(a.params["beta"] for a in asked) > 1 - 1e-8
    with pytest.raises(vt.InputError, match="finite"):
        vt.loguniform(1, 10**400)
    with pytest.raises(vt.InputError, match="at most 1,000,000 values"):
        vt.randint(0, 2**40)


@settings(max_examples=100, deadline=None)
@given(low=st.floats(-1e20, 1e20), width=st.floats(1e-6, 1e15), seed=st.integers(0, 99), zero=st.sampled_from([0, 0.4]))
def test_a_drawn_number_is_a_float32_within_the_bounds(low, width, seed, zero):
    high = low + width * max(1.0, abs(low))
    laws = [vt.uniform(low, high, or_zero=zero)]
    laws.append(vt.loguniform(max(abs(low), TINY), max(abs(high), 1e-30) + abs(low) * 1.1, or_zero=zero))
    laws.append(vt.reverseloguniform(1 - min(1.0, abs(low) + 1e-3), 1 - 1e-7, or_zero=zero))
    for law in laws:
        try:
            check_held("x", law)
        except vt.InputError:  # bounds beside 0 or 1, say
            continue
        space = vt.Space({"x": law})
        columns = space.sample(64, seed)
        for params, exact in zip(space.rows(columns), columns["x"], strict=True):
            x = params["x"]
            assert x == float(np.float32(x))
            assert law.contains(x)
            assert abs(x) >= TINY or x == 0
            assert abs(x - exact) <= max(1.3e-7 * abs(exact), TINY)


def test_a_zoom_that_expands_stays_within_what_a_lane_can_hold():
    first = vt.Space({"beta": vt.reverseloguniform(0.9, 1 - 2e-7), "rate": vt.loguniform(1e-37, 1e-30)})
    best = [Scored(i, {"beta": 1 - 2e-7 * (1 + i / 9), "rate": 1e-37 * (1 + i / 9)}, float(i)) for i in range(9)]
    wider = zoom(first, first, best, expand=True, margin=2.0)
    assert first["beta"].high < wider["beta"].high < 1
    assert np.float32(wider["beta"].high) < 1
    assert TINY <= wider["rate"].low < first["rate"].low


def test_a_population_perturbs_to_numbers_that_lanes_hold():
    space = vt.Space(NEAR_1)
    params = space.rows(space.sample(20, 0))
    copies = generation(space, ["beta"], range(20), np.arange(20.0), params, PBT(), 0, 5)
    assert copies
    for copy in copies:
        beta = copy.params["beta"]
        assert beta == float(np.float32(beta)) < 1


def test_a_person_who_watches_is_told_what_float32_makes_of_a_number(tmp_path):
    panda = Panda(experiment(NEAR_1), {"beta": 0.9}, seed=1, steps=4, directory=tmp_path / "p")
    panda.begin()
    panda.adjust("beta", 0.99)
    assert panda.settings["beta"] == 0.99  # as it was written
    panda.adjust("beta", 1 - 1.4e-7)
    assert panda.settings["beta"] == float(np.float32(1 - 1.4e-7)) != 1 - 1.4e-7
    for value, words in ((1 - 1e-9, "exactly 1"), (1e-60, "becomes 0"), (1e60, "infinite")):
        with pytest.raises(vt.InputError, match=words):
            panda.adjust("beta", value)
    hands = Hands(panda)
    for _ in range(5):
        hands.press("+")
    assert "exactly 1" in hands.message
    assert np.float32(panda.settings["beta"]) < 1
    panda.close()


def test_the_command_line_refuses_it_too(tmp_path, capsys):
    (tmp_path / "e.py").write_text(
        "import vmaptune as vt\n"
        "task = vt.Task(lambda hp, key: 1.0 * hp.n, lambda x, hp, key: x, lambda x, hp: {'loss': x})\n"
        "experiment = vt.Experiment(space={'n': vt.choice([1, 3])}, task=task, steps=2)\n"
    )
    command = [str(tmp_path / "e.py"), "--set", "n=choice([1, 3000000000])"]
    for first in ("check", "run", "panda"):
        more = ["--set", "n=3000000000"] if first == "panda" else []
        assert main([first, *(command if not more else [command[0], *more])]) == 2
        assert "2147483647" in capsys.readouterr().err
