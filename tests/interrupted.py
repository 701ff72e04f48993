"""A study with every kind of end, brought down at chosen moments, and what must be the same afterwards."""

from __future__ import annotations

from pathlib import Path

from vmaptune.store.ledger import LedgerReader

# A task with every kind of end: some rates diverge, the width makes two groups.
TASK = """
import jax, jax.numpy as jnp
import vmaptune as vt

def init(hp, key):
    return {"x": jax.random.normal(key, (hp.width,)), "n": jnp.int32(0)}

def step(state, hp, key):
    x = state["x"] - hp.rate * (state["x"] + 0.1 * jax.random.normal(key, state["x"].shape))
    return {"x": x, "n": state["n"] + 1}, (x ** 2).mean()

def evaluate(state, hp):
    return {"loss": (state["x"] ** 2).mean()}

experiment = vt.Experiment(
    space={"rate": vt.loguniform(1e-2, 1e3), "width": vt.ordinal([3, 5])},
    task=vt.Task(init, step, evaluate, has_loss=True), steps=30,
)
"""
OPTIONS = {"trials": 40, "rounds": 2, "plan": "devices=1,tiles=1,lanes=4,every=4", "lanes": 8}
COMMAND = ["--trials", "40", "--rounds", "2", "--plan", OPTIONS["plan"], "--lanes", "8", "--quiet"]


def content(directory: Path) -> tuple:
    """All that must be the same to the bit: table, curves, decisions, weights."""
    with LedgerReader.open(directory) as reader:
        curves = list(reader.curves())
        decisions = [(d.round, d.kind, d.data) for d in reader.decisions() if d.kind != "lanes"]  # busy lanes: a figure
        rounds = [(r.round, r.kind, r.space, r.trials) for r in reader.rounds()]
    weights = {path.name: path.read_bytes() for path in (directory / "best").iterdir()}
    return (directory / "trials.csv").read_bytes(), repr(curves), decisions, rounds, weights


def finished(directory: Path) -> bool:
    if not (directory / "study.db").exists():
        return False
    with LedgerReader.open(directory) as reader:
        return reader.finished()


class Crash:
    """A listener that brings the study down at its n-th word."""

    def __init__(self, n: int):
        self.left = n

    def progress(self, progress) -> None:
        self.left -= 1
        if self.left == 0:
            raise MemoryError("crash")

    def note(self, text) -> None:
        pass
