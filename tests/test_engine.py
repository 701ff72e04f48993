"""Lanes: a trial's bits are its own, a NaN touches nobody, and a program compiles once."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vmaptune.engine.alone import Alone
from vmaptune.engine.functions import LaneFunctions, hoist
from vmaptune.engine.lanes import Job, Lanes
from vmaptune.engine.plan import Costs, Plan, default_plan, parse_plan, segment_steps
from vmaptune.engine.program import Program
from vmaptune.errors import InputError
from vmaptune.task import Task

TRACED = {"rate": jax.ShapeDtypeStruct((), jnp.float32)}


def noisy_task() -> Task:
    """A small tanh network on random targets: enough floating point to show any change of bits."""
    x = jax.random.normal(jax.random.key(1), (64, 5))
    y = jnp.sin(x.sum(1))

    def init(hp, key):
        a, b = jax.random.split(key)
        return {"w": jax.random.normal(a, (5, 7)), "v": jax.random.normal(b, (7,)), "key": key}

    def loss_of(params, rows):
        return ((jnp.tanh(x[rows] @ params[0]) @ params[1] - y[rows]) ** 2).mean()

    def step(state, hp, key):
        rows = jax.random.randint(key, (8,), 0, 64)
        loss, (gw, gv) = jax.value_and_grad(loss_of)((state["w"], state["v"]), rows)
        new = {"w": state["w"] - hp.rate * gw, "v": state["v"] - hp.rate * gv, "key": state["key"]}
        return new, loss

    def evaluate(state, hp):
        return {"loss": loss_of((state["w"], state["v"]), jnp.arange(64))}

    return Task(init, step, evaluate, has_loss=True)


@pytest.fixture(scope="module")
def program() -> Program:
    return Program(LaneFunctions(noisy_task(), {}, TRACED), TRACED, Plan(devices=2, lanes=4, every=5))


def train(program: Program, jobs: list[Job], capacity: int = 1000):
    points: dict[int, list] = {}
    states: dict[int, object] = {}

    def on_points(segment):
        for point in segment:
            points.setdefault(point.trial, []).append((point.step, point.loss, point.metrics["loss"], point.bad))
        return [p.trial for p in segment if p.bad is not None]

    lanes = Lanes(
        program, capacity=capacity, on_points=on_points,
        on_state=lambda job, state: states.__setitem__(job.trial, state),
    )  # fmt: skip
    lanes.train(jobs)
    return points, states, lanes


def job(trial: int, rate: float = 0.05, seed: int | None = None, steps: int = 20) -> Job:
    return Job(trial, seed if seed is not None else 100 + trial, {"rate": rate}, steps, keep=True)


def same_bits(a, b) -> bool:
    return all(
        np.asarray(x).tobytes() == np.asarray(y).tobytes()
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def test_a_trial_has_the_same_bits_in_any_lane_beside_any_neighbours(program):
    alone_points, alone_states, _ = train(program, [job(3)])
    for position in range(8):
        others = [job(50 + i, rate=0.01 * (i + 1)) for i in range(8)]
        others[position] = job(3)
        points, states, _ = train(program, others)
        assert points[3] == alone_points[3]
        assert same_bits(states[3], alone_states[3])


def test_a_trial_has_the_same_bits_as_a_refill_whenever_it_enters(program):
    alone_points, alone_states, _ = train(program, [job(3)])
    early = [job(50 + i, steps=5 + 5 * (i % 3)) for i in range(11)]
    points, states, _ = train(program, [*early, job(3)], capacity=8)
    assert points[3] == alone_points[3]
    assert same_bits(states[3], alone_states[3])


def test_nan_neighbours_change_no_bit_and_are_told_with_their_step(program):
    alone_points, alone_states, _ = train(program, [job(3)])
    jobs = [job(50 + i, rate=float("nan") if i % 2 else 1e30) for i in range(7)]
    points, states, _ = train(program, [*jobs[:4], job(3), *jobs[4:]])
    assert points[3] == alone_points[3]
    assert same_bits(states[3], alone_states[3])
    assert points[51][0][3] == 2  # a NaN rate spoils the first update, so the second step's loss is not finite
    assert [p[0] for p in points[51]] == [5]  # stopped at the segment's end: its lane is free


@pytest.mark.parametrize("uneven", [False, True])
def test_a_lane_that_goes_wrong_is_frozen_within_its_segment_and_stays_so_until_it_is_refilled(program, uneven):
    small = Program(program.functions, TRACED, Plan(devices=2, lanes=2, every=5), uneven=uneven)

    def segment(state, rate, fresh=None):
        hp = {"rate": np.array([0.05, rate, 0.05, 0.05], np.float32)}
        table = small.table(hp, np.arange(4), np.full(4, 99), False if fresh is None else fresh)
        state, result = small.run(state, table, 5, fill=fresh is not None)
        return state, small.read(result)

    def lane(state, i):
        return [np.array(leaf[i]) for leaf in state[:-2]]

    state, _ = segment(small.empty(), 0.05, np.ones(4, bool))
    before, others = lane(state, 1), [lane(state, i) for i in (0, 2, 3)]
    state, result = segment(state, np.nan)
    assert result.bad.tolist() == [-1, 7, -1, -1]
    assert np.isnan(result.metrics["loss"]).tolist() == [False, True, False, False]
    assert same_bits(lane(state, 1), before)
    assert not any(same_bits(lane(state, i), old) for i, old in zip((0, 2, 3), others, strict=True))
    state, result = segment(state, 0.05)
    assert same_bits(lane(state, 1), before)
    assert result.bad.tolist() == [-1, 7, -1, -1]
    refilled = np.array([False, True, False, False])
    state, result = segment(state, 0.05, refilled)
    assert result.bad.tolist() == [-1] * 4
    assert same_bits(lane(state, 1), before)  # five steps after its start again


def test_segment_length_changes_no_bit(program):
    functions = program.functions
    other = Program(functions, TRACED, Plan(devices=2, lanes=4, every=20))
    _, a, _ = train(program, [job(i) for i in range(8)])
    _, b, _ = train(other, [job(i) for i in range(8)])
    assert same_bits(a, b)


def test_tiles_change_no_bit_and_idle_ones_are_passed_over(program):
    """Six trials in two of eight tiles: the others cost nothing, and the bits are those of a program without tiles."""
    tiled = Program(program.functions, TRACED, Plan(devices=2, lanes=4, every=5, tiles=4))
    points, states, lanes = train(tiled, [job(i) for i in range(6)])
    expected_points, expected_states, _ = train(program, [job(i) for i in range(6)])
    assert points == expected_points
    assert same_bits(states, expected_states)
    assert lanes.lane_steps == 8 * 20


def test_a_limit_within_a_segment_freezes_the_lane_and_nobody_else(program):
    """12 steps in segments of 5: the last point is at 12, and the state is the one after 12 steps, refilled or not."""
    short = [job(i, steps=12) for i in range(8)]
    points, states, _ = train(program, [*short, *(job(10 + i) for i in range(9))], capacity=8)
    assert [p[0] for p in points[0]] == [5, 10, 12]
    assert [p[0] for p in points[18]] == [5, 10, 15, 20]
    exact = Program(program.functions, TRACED, Plan(devices=2, lanes=4, every=4), uneven=False)
    _, expected, _ = train(exact, short)
    for trial in range(8):
        for a, b in zip(jax.tree.leaves(states[trial]), jax.tree.leaves(expected[trial]), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5)  # another program: the same but for rounding


def shared_task() -> Task:
    """The noisy task with the rows of a batch alike for all lanes."""
    own = noisy_task()
    x = jax.random.normal(jax.random.key(1), (64, 5))

    def step(state, hp, key, rows):
        w = state["w"] - hp.rate * x[rows].T @ jnp.tanh(x[rows] @ state["w"])
        return {**state, "w": w}, (w**2).sum()

    def shared(done, count):
        keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(9), done + i))(jnp.arange(count))
        return jax.vmap(lambda key: jax.random.randint(key, (8,), 0, 64))(keys)

    return Task(own.init, step, own.evaluate, has_loss=True, shared=shared)


def test_what_lanes_have_alike_is_the_step_s_own_whenever_a_trial_enters():
    program = Program(LaneFunctions(shared_task(), {}, TRACED), TRACED, Plan(devices=2, lanes=2, every=5, tiles=2))
    alone_points, alone_states, _ = train(program, [job(3)])
    early = [job(50 + i, steps=5 + 5 * (i % 3)) for i in range(11)]
    points, states, _ = train(program, [*early, job(3)], capacity=8)
    assert points[3] == alone_points[3]
    assert same_bits(states[3], alone_states[3])
    again = Alone(program.functions, {"rate": 0.05}, 103).train([5, 10, 15, 20])
    np.testing.assert_allclose([p.loss for p in again], [p[1] for p in alone_points[3]], rtol=1e-5)


def test_inputs_worked_out_ahead_are_those_of_a_step_at_a_time():
    own = noisy_task()
    x = jax.random.normal(jax.random.key(1), (64, 5))

    def rows_of(state, done):
        return jax.random.randint(jax.random.fold_in(state["key"], done), (8,), 0, 64)

    def trained(state, hp, rows):
        w = state["w"] - hp.rate * x[rows].T @ jnp.tanh(x[rows] @ state["w"])
        return {**state, "w": w}, (w**2).sum()

    def inputs(state, hp, done, count):
        return jax.vmap(lambda i: rows_of(state, done + i))(jnp.arange(count))

    def counting(state, hp, key):
        new, loss = trained(state["own"], hp, rows_of(state["own"], state["step"]))
        return {"own": new, "step": state["step"] + 1}, loss

    ahead = Task(own.init, lambda s, hp, key, rows: trained(s, hp, rows), own.evaluate, has_loss=True, inputs=inputs)
    at_a_time = Task(
        lambda hp, key: {"own": own.init(hp, key), "step": jnp.int32(0)}, counting,
        lambda s, hp: own.evaluate(s["own"], hp), has_loss=True,
    )  # fmt: skip
    jobs = [job(i, steps=11 + 11 * (i % 2)) for i in range(6)]  # segments of 11 steps: one whole block and a part
    plan = Plan(devices=2, lanes=2, every=11)
    points, states, _ = train(Program(LaneFunctions(ahead, {}, TRACED), TRACED, plan, uneven=False), jobs)
    expected, kept, _ = train(Program(LaneFunctions(at_a_time, {}, TRACED), TRACED, plan, uneven=False), jobs)
    for i in range(6):
        np.testing.assert_allclose([p[1] for p in points[i]], [p[1] for p in expected[i]], rtol=1e-6)
        np.testing.assert_allclose(states[i]["w"], kept[i]["own"]["w"], rtol=1e-5)
    alone = Alone(LaneFunctions(ahead, {}, TRACED), {"rate": 0.05}, 103).train([11, 22])
    np.testing.assert_allclose([p.loss for p in alone], [p[1] for p in points[3]], rtol=1e-5)


def test_a_task_has_shared_or_inputs():
    with pytest.raises(InputError, match="both `shared` and `inputs`"):
        Task(*[lambda *_: None] * 3, shared=lambda t: t, inputs=lambda s, hp, t, n: t)


def test_the_same_program_again_gives_the_same_bits(program):
    jobs = [job(i, rate=0.01 * (i + 1)) for i in range(20)]
    assert train(program, jobs)[0] == train(program, jobs)[0]


def test_the_seed_makes_a_trial_and_the_trial_number_does_not(program):
    points, _, _ = train(program, [job(1, seed=7), job(2, seed=7), job(3, seed=8)])
    assert points[1] == points[2] != points[3]


def test_a_lane_trained_alone_follows_the_same_curve(program):
    points, _, _ = train(program, [job(3)])
    alone = Alone(program.functions, {"rate": 0.05}, 103).train([5, 10, 15, 20])
    assert [p.step for p in alone] == [p[0] for p in points[3]]
    np.testing.assert_allclose([p.loss for p in alone], [p[1] for p in points[3]], rtol=1e-5)


def test_nothing_is_compiled_after_the_program(program):
    train(program, [job(i) for i in range(9)])  # whatever a first use brings
    compiled: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compiled.append(name) if "backend_compile" in name else None
    )
    train(program, [job(i, steps=7) for i in range(30)], capacity=16)
    assert compiled == []
    jax.jit(lambda x: x * 3.5)(jnp.arange(3)).block_until_ready()
    assert compiled  # the counter does count


@pytest.mark.parametrize("lanes", [1, 2])
def test_a_call_copies_no_lanes_but_its_tile_s(lanes):
    plan = Plan(devices=2, lanes=lanes, tiles=3, every=5)
    text = Program(LaneFunctions(noisy_task(), {}, TRACED), TRACED, plan)._segment.as_text()
    whole = rf"f32\[(?:{3 * lanes}|3,{lanes}),(?:5,7|7,5)\]\{{[\d,]*\}}"
    assert re.search(rf"= {whole} parameter", text)
    assert not re.search(rf"= {whole} copy", text)


def test_occupancy_is_counted(program):
    _, _, lanes = train(program, [job(i) for i in range(12)], capacity=8)
    assert lanes.live_steps == 12 * 20
    assert lanes.lane_steps == 16 * 20


def test_closed_over_arrays_become_arguments():
    table = jnp.arange(1000.0)
    hoisted = hoist(lambda i: table[i], jax.ShapeDtypeStruct((), jnp.int32))
    assert [c.shape for c in hoisted.consts] == [(1000,)]
    assert float(hoisted.call(hoisted.consts, jnp.int32(7))) == 7.0


def test_what_a_function_returns_whatever_it_is_given_is_an_array():
    """A flag of an optimizer's state that each step sets alike came as a plain bool, and the program was not built."""

    def step(state, hp, key):
        return {"w": state["w"] - hp.rate, "first": False, "n": 3, "share": 0.5}

    task = Task(
        lambda hp, key: {"w": jnp.ones(2), "first": True, "n": 0, "share": 1.0}, step, lambda s, hp: {"loss": 1}
    )
    functions = LaneFunctions(task, {}, TRACED)
    before = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), functions.state)
    after, _ = functions.step.call((), before, {"rate": jnp.float32(0.1)}, jnp.uint32(0), jnp.int32(0), ())
    kinds = {name: (value.dtype, value.item()) for name, value in after.items() if name != "w"}
    assert kinds == {"first": (jnp.bool_, False), "n": (jnp.int32, 3), "share": (jnp.float32, 0.5)}
    assert functions.evaluate.call((), after, {"rate": jnp.float32(0.1)})["loss"].dtype == jnp.float32
    Program(functions, TRACED, Plan(devices=1, lanes=2, every=2), compile=False)


def test_a_state_that_changes_its_shape_is_an_error():
    task = Task(lambda hp, key: jnp.zeros(2), lambda s, hp, key: jnp.zeros(3), lambda s, hp: {"loss": s.sum()})
    with pytest.raises(InputError, match=r"float32\[2\] became float32\[3\]"):
        LaneFunctions(task, {}, TRACED)


@pytest.mark.parametrize(
    ("step_flops", "evaluate_flops", "steps", "every"),
    [
        (100, 100, 1000, 50),
        (100, 1000, 1000, 100),  # 91 would do; 100 divides the steps
        (100, 10_000, 1000, 1000),
        (100, 1, 10, 1),
        (100, 500, 97, 49),
    ],
)
def test_evaluation_takes_at_most_a_tenth(step_flops, evaluate_flops, steps, every):
    assert segment_steps(Costs(1, 1, step_flops, evaluate_flops), steps) == every


def test_the_plan_can_be_pinned_and_does_not_depend_on_anything_measured():
    costs = Costs(10_000, 10_000, 1e4, 1e3)
    assert default_plan(costs, steps=100, trials=64) == default_plan(costs, steps=100, trials=64)
    pinned = parse_plan("devices=1, lanes=3,every=7")
    assert default_plan(costs, steps=100, trials=64, pinned=pinned) == Plan(1, 3, 7, tiles=22)
    for text in ("lanes=0", "lanes", "rows=3", "lanes=-1", "lanes=two", "devices=4096"):
        with pytest.raises(InputError, match="--plan"):
            parse_plan(text)
    with pytest.raises(InputError, match=r"plan must be a text like 'devices=2,.* but got \{'lanes': 1\}"):
        parse_plan({"lanes": 1})


@pytest.mark.parametrize(
    ("step_flops", "tiles"),
    [
        (1e6, 16),  # 16 tiles take a second
        (1e9, 9),  # a tile takes 3.2 s: nine in a call
        (1e11, 1),
    ],
)
def test_a_call_on_a_cpu_takes_half_a_minute_at_most_where_a_tile_does(step_flops, tiles):
    costs = Costs(10, 10, step_flops, 1.0)
    assert default_plan(costs, steps=100, trials=1024, pinned={"devices": 1, "lanes": 64, "every": 1}).tiles == tiles


def test_groups_take_turns_and_change_no_bit(program):
    """Two sets of lanes, stepped one call each in turn, give what each gives alone; points come in call order."""
    alone = [train(program, [job(10 * g + i) for i in range(9)], capacity=8)[0] for g in range(2)]
    points: dict[int, list] = {}
    order: list[tuple[int, int]] = []

    def on_points(segment):
        for point in segment:
            points.setdefault(point.trial, []).append((point.step, point.loss, point.metrics["loss"], point.bad))
            order.append((point.step, point.trial))
        return []

    both = [Lanes(program, capacity=8, on_points=on_points) for _ in range(2)]
    for g, lanes in enumerate(both):
        lanes.submit([job(10 * g + i) for i in range(9)])
    going = list(both)
    while going:
        assert all(lanes.live <= 8 for lanes in both)
        going = [lanes for lanes in going if lanes.advance()]
    assert points == alone[0] | alone[1]
    steps = [step for step, trial in order if trial in (0, 10)]
    assert steps == [5, 5, 10, 10, 15, 15, 20, 20]


def test_jobs_that_a_decision_submits_are_trained(program):
    seen = []

    def on_points(segment):
        for point in segment:
            seen.append((point.trial, point.step))
            if point.step == 20 and point.trial < 3:
                lanes.submit([job(point.trial + 1)])
        return []

    lanes = Lanes(program, capacity=8, on_points=on_points)
    lanes.train([job(0)])
    assert [trial for trial, step in seen if step == 20] == [0, 1, 2, 3]
    assert lanes.live == 0
