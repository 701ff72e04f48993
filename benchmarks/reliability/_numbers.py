"""NaN, +inf and -inf in lane i at step t: no other lane's bit changes, and the bad one is stopped and never best."""

from __future__ import annotations

import random

from _report import row
from _studies import Bench


def bad_numbers(bench: Bench, draws: int) -> None:
    import jax
    import jax.numpy as jnp

    from vmaptune.engine.functions import LaneFunctions
    from vmaptune.engine.lanes import Job, Lanes
    from vmaptune.engine.plan import Plan
    from vmaptune.engine.program import Program
    from vmaptune.search.zoom import Scored, best
    from vmaptune.task import Task

    traced = {n: jax.ShapeDtypeStruct((), jnp.float32) for n in ("rate", "when", "bad")}

    def init(hp, key):
        return {"x": jax.random.normal(key, (6,)), "t": jnp.float32(0)}

    def step(state, hp, key):
        x = state["x"] - hp.rate * jnp.sin(state["x"] + 0.1 * jax.random.normal(key, (6,)))
        t = state["t"] + 1
        x = jnp.where(t == hp.when, hp.bad, x)
        return {"x": x, "t": t}, (x**2).mean()

    def evaluate(state, hp):
        return {"loss": jnp.where(jnp.isinf(state["x"][0]), state["x"][0], (state["x"] ** 2).mean())}

    task = Task(init, step, evaluate, has_loss=True)
    program = Program(LaneFunctions(task, {}, traced), traced, Plan(devices=1, lanes=8, every=5))

    def train(when: float, bad: float, lane: int) -> tuple[dict, dict]:
        points: dict[int, list] = {}
        wrong: dict[int, int] = {}

        def on_points(found):
            for p in found:
                points.setdefault(p.trial, []).append((p.step, p.loss, p.metrics["loss"]))
                if p.bad is not None:
                    wrong[p.trial] = p.bad
            return [p.trial for p in found if p.bad is not None]

        jobs = [Job(i, 50 + i, {"rate": 0.1, "when": when if i == lane else -1.0, "bad": bad}, 20) for i in range(8)]
        Lanes(program, capacity=8, on_points=on_points).train(jobs)
        return points, wrong

    tally = bench.tally("bad")
    clean, _ = train(-1.0, 0.0, 0)
    while tally["draws"] < draws and not bench.over:
        draw = random.Random(f"bad {tally['draws']}")
        lane, when = draw.randrange(8), draw.randrange(1, 21)
        bad = draw.choice([float("nan"), float("inf"), -float("inf")])
        points, wrong = train(float(when), bad, lane)
        scored = [Scored(i, {}, points[i][-1][2] if i not in wrong else float("nan")) for i in range(8)]
        tally.add(
            draws=1, equal=all(points[i] == clean[i] for i in range(8) if i != lane),
            never_best=wrong.get(lane) == when and best(scored, 1)[0].trial != lane,
        )  # fmt: skip
    tally.keep()


def rows(bench: Bench, draws: int) -> list[dict]:
    tally = bench.tally("bad")
    return [] if not tally else [
        row(f"NaN and infinities in one lane: the others bitwise equal, of {draws}", tally["equal"], f"{draws}",
            tally["equal"] == tally["draws"] >= draws),
        row(f"the bad lane is told with its step and never best, of {draws}", tally["never_best"], f"{draws}",
            tally["never_best"] == tally["draws"] >= draws),
    ]  # fmt: skip
