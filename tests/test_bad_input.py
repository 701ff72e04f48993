"""Bad input: a clear error with exit code 2 before anything compiles, and nothing is written or lost.

A case is an experiment file, made from `FILE` by replacements, and a command line. Its words are what the message
must say: what is wrong, the rule, what was received, the way out; one regular expression a line.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jax
import pytest

from vmaptune import cli

ROOT = Path(__file__).parent.parent
FILE = """\
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen, nnx

import vmaptune as vt

space = {
    "learning_rate": vt.loguniform(1e-4, 1.0),
    "x": vt.uniform(0.0, 0.5),
    "width": vt.ordinal([2, 4]),
}


class Net(nnx.Module):
    def __init__(self, hp, rngs):
        self.first = nnx.Linear(3, 4, rngs=rngs)
        self.last = nnx.Linear(4, 1, rngs=rngs)

    def __call__(self, inputs):
        return self.last(nnx.relu(self.first(inputs)))


class LinenNet(linen.Module):
    rate: float

    @linen.compact
    def __call__(self, inputs, train):
        hidden = linen.relu(linen.Dense(4)(inputs))
        hidden = linen.Dropout(self.rate)(hidden, deterministic=not train)
        return linen.Dense(1)(hidden)


def model(hp, rngs):
    return Net(hp, rngs)


def optimizer(hp, steps):
    return optax.sgd(hp.learning_rate)


def loss(model, batch, hp):
    inputs, wanted = batch
    return ((model(inputs)[:, 0] - wanted) ** 2).mean()


def metrics(model, batch):
    inputs, wanted = batch
    return {"error": ((model(inputs)[:, 0] - wanted) ** 2).mean()}


def data():
    x, y = np.ones((20, 3), np.float32), np.ones(20, np.float32)
    return vt.Data(train=(x, y), valid=(x, y))


experiment = vt.Experiment(
    space=space, model=model, optimizer=optimizer, loss=loss, metrics=metrics, data=data,
    objective="error", batch_size=8, steps=4,
)
"""

# what is replaced, each once in FILE
RATE = "vt.loguniform(1e-4, 1.0)"
X = "vt.uniform(0.0, 0.5)"
WIDTH = '"width": vt.ordinal([2, 4]),'
SPACE = "space=space"
FIRST = "nnx.Linear(3, 4, rngs=rngs)"
CALLED = "self.last(nnx.relu(self.first(inputs)))"
MODEL = "return Net(hp, rngs)"
OPTIMIZER = "return optax.sgd(hp.learning_rate)"
LOSS = "return ((model(inputs)[:, 0] - wanted) ** 2).mean()"
METRICS = 'return {"error": ((model(inputs)[:, 0] - wanted) ** 2).mean()}'
ARRAYS = "x, y = np.ones((20, 3), np.float32), np.ones(20, np.float32)"
DATA = "return vt.Data(train=(x, y), valid=(x, y))"
EXPERIMENT = "experiment = vt.Experiment("


@dataclass(frozen=True)
class Case:
    """One mistake."""

    words: str  # what the message must say
    swap: dict[str, str]  # in FILE
    args: tuple[str, ...] = ()
    text: str | None = None  # the whole file, instead of FILE
    at: str | None = None  # code of the line of the person's file that the message must point at

    @property
    def source(self) -> str:
        source = self.text if self.text is not None else FILE
        for old, new in self.swap.items():
            assert source.count(old) == 1, f"{old!r} is {source.count(old)} times in FILE"
            source = source.replace(old, new)
        return source


def swap(words: str, old: str, new: str, at: str | None = None, **more: str) -> Case:
    return Case(words, {old: new, **more}, at=new if at is None else at)


def text(words: str, source: str, at: str = "") -> Case:
    return Case(words, {}, text=source, at=at)


def args(words: str, *given: str) -> Case:
    return Case(words, {}, given)


# fmt: off
LOADING = {
    "syntax error": text(
        "not valid Python\n'\\(' was never closed", "import vmaptune as vt\nspace = vt.x(\n", "space = vt.x("),
    "return at the top": text("not valid Python\n'return' outside function", "x = 1\nreturn x\n", "return x"),
    "null byte": text("not valid Python|cannot be read as a Python file", "x = '\0'\n"),
    "not UTF-8": text("not valid Python|cannot be read as a Python file", "x = '\udcff'\n"),
    "no such name": swap("does not import: NameError: name 'spcae' is not defined", SPACE, "space=spcae"),
    "no such module": text(
        "does not import: ModuleNotFoundError.*no_such_module\nway out: install 'no_such_module'",
        "import jax\nimport no_such_module\n", "import no_such_module"),
    "no such name in a module": text(
        "does not import: ImportError: cannot import name 'nothing'", "from json import nothing\n",
        "from json import nothing"),
    "exception at its line": text(
        "does not import: ZeroDivisionError: division by zero", "x = 1\n\ny = x / 0\n", "y = x / 0"),
    "exception that says nothing": text("does not import: AssertionError\n", "assert 1 > 2\n", "assert 1 > 2"),
    "sys.exit": text("does not import: SystemExit: 3", "import sys\nsys.exit(3)\n", "sys.exit(3)"),
    "no experiment": text(
        "must define `experiment = vt.Experiment\nbut it defines none\nvmaptune new", "import vmaptune as vt\n"),
    "another thing": text(
        "must define `experiment = vt.Experiment\nbut it defines `experiment` as dict", "experiment = {'space': {}}\n"),
    "two experiments": swap(
        "must define one experiment, but it defines 2: other, experiment\nname the one to run: exp.py:other",
        EXPERIMENT, f"other = vt.Experiment({SPACE}, model=model, optimizer=optimizer, loss=loss, data=data)\n"
        + EXPERIMENT, at=""),
    "experiment assigned twice": swap(
        "must define one 'experiment', but it does so at lines 57, 58\ndifferent names",
        EXPERIMENT, f"experiment = 1\n{EXPERIMENT}", at=""),
    "unknown part": swap(
        "does not import: TypeError.*unexpected keyword argument 'optimiser'", "optimizer=optimizer",
        "optimiser=optimizer", at=EXPERIMENT),
    "missing part": swap("model must be given\n`task=`", "model=model, ", "", at=EXPERIMENT),
    "part that is no function": swap("`loss` must be a function, but got 3", "loss=loss", "loss=3", at=EXPERIMENT),
    "direction": swap(
        '`direction` must be "minimize" or "maximize", but got \'up\'', 'objective="error"',
        'objective="error", direction="up"', at=EXPERIMENT),
    "objective that is no name": swap(
        "`objective` must be the name of a metric, but got 3", 'objective="error"', "objective=3", at=EXPERIMENT),
    "steps": swap("`steps` must be a whole number of at least 1, but got 0", "steps=4", "steps=0", at=EXPERIMENT),
    "batch size": swap(
        "`batch_size` must be a whole number of at least 1, but got 2.5", "batch_size=8", "batch_size=2.5",
        at=EXPERIMENT),
    "batch size of no setting": swap(
        "`batch_size` must be a whole number or the name of a setting\nno setting 'size'\nlearning_rate, x, width",
        "batch_size=8", 'batch_size="size"', at=EXPERIMENT),
    "continuous batch size": swap(
        "'x' that gives `batch_size` must be a finite set\nbut it is uniform\nvt.ordinal", "batch_size=8",
        'batch_size="x"', at=EXPERIMENT),
    "continuous setting called steps": Case(
        "'steps' that gives `steps` must be a finite set\nbut it is loguniform\nvt.ordinal",
        {WIDTH: '"steps": vt.loguniform(10, 100),', "steps=4": "steps=None"}, at=EXPERIMENT),
}

SPACES = {
    "loguniform from 0": swap(
        "loguniform\\(0, 1\\)\n`low` must be above 0\nbut got 0\nor_zero", RATE, "vt.loguniform(0, 1)"),
    "reverseloguniform to 1": swap(
        "reverseloguniform\\(0.9, 1.0\\)\n`high` must be below 1\nbut got 1.0\n0.999", X,
        "vt.reverseloguniform(0.9, 1.0)"),
    "bounds swapped": swap("`low <= high` must hold\nlow=2.0, high=1.0\nswap", X, "vt.uniform(2.0, 1.0)"),
    "NaN": swap("`high` must be a finite number, but got nan", X, 'vt.uniform(0.0, float("nan"))'),
    "infinity": swap("`low` must be a finite number, but got -inf", X, "vt.uniform(-np.inf, 0)"),
    "bound of text": swap("`low` must be a finite number, but got '1e-4'", X, "vt.loguniform('1e-4', 1)"),
    "fraction as a whole number": swap("`high` must be a whole number, but got 7.5\nuniform", X, "vt.randint(1, 7.5)"),
    "empty choice": swap("choice\\(\\[\\]\\)\nmust be at least one value\nempty", X, "vt.choice([])"),
    "option twice": swap("must be there once, but 'a' is there twice", X, "vt.choice(['a', 'b', 'a'])"),
    "option of another kind": swap("must be a string, a number\ngot <\ngive it a name", X, "vt.choice([nnx.relu])"),
    "ordinal that does not increase": swap("numbers must increase\nsort them", X, "vt.ordinal([2, 1])"),
    "probability": swap("`or_zero` must be a probability.*but got 2", X, "vt.uniform(0, 1, or_zero=2)"),
    "name twice in a dict": swap(
        "'x' must be named once, but it is also at line 10\nanother name\nexp.py:11", WIDTH, f'"x": {X},', at=""),
    "name twice in pairs": swap(
        "'x' must be named once, but it is named twice\nrename", SPACE,
        'space=[("x", vt.uniform(0, 1)), ("x", vt.uniform(0, 1))]', at=EXPERIMENT),
    "name with a space": swap(
        "must be one that Python can spell\ngot 'learning rate'\n'learning_rate' would do", '"learning_rate": ',
        '"learning rate": ', at=EXPERIMENT),
    "keyword as a name": swap(
        "must be one that Python can spell\ngot 'class'\n'class_' would do", '"width": ', '"class": ', at=EXPERIMENT),
    "no settings": swap("must hold at least one setting\nloguniform", SPACE, "space={}", at=EXPERIMENT),
    "constructor without a call": swap(
        "'x' must be a distribution\nbut got <function", X, "vt.uniform", at=EXPERIMENT),
}

PARTS = {
    "objective": swap(
        "objective 'accuracy' must be one of the metrics\nbut they are 'error'\nobjective=", 'objective="error"',
        'objective="accuracy"', at="metrics()"),
    "objective without metrics": swap(
        "objective 'error' must be one of the metrics\nbut they are 'loss'", "metrics=metrics, ", "", at=""),
    "metrics without a name": swap(
        "metrics\\(\\) must return a dict of scalars, but it returned an array float32\\[\\]\ngive each a name",
        METRICS, "return model(inputs).mean()", at="metrics()"),
    "metric of a vector": swap(
        "'error' must be a real scalar, but its shape is \\(20, 1\\)\ntake the mean", METRICS,
        'return {"error": model(inputs)}', at="metrics()"),
    "loss of a vector": swap(
        "loss\\(\\) must return a scalar, but its shape is \\(8,\\)\ntake the mean", LOSS,
        "return (model(inputs)[:, 0] - wanted) ** 2", at="loss()"),
    "complex loss": swap(
        "loss\\(\\) must return a real float, but its dtype is complex64\nreal part", LOSS,
        "return (model(inputs) * 1j).mean()", at="loss()"),
    "whole-number loss": swap(
        "loss\\(\\) must return a real float, but its dtype is int32\ninteger has no gradient", LOSS,
        "return (model(inputs) > 0).sum()", at="loss()"),
    "loss and more": swap(
        "loss\\(\\) must return a scalar array, but it returned a tuple\nreturn the loss alone", LOSS,
        "return model(inputs).mean(), 1", at="loss()"),
    "loss that is not returned": swap(
        "loss\\(\\) must return a scalar array, but it returned None", LOSS, "model(inputs).mean()", at="loss()"),
    "class for a model": swap(
        "model\\(\\) must return\nreturned the class Net\nthe model itself, not its class", MODEL, "return Net",
        at="model()"),
    "tuple for a model": swap(
        "model\\(\\) must return\nreturned a tuple\nnot its class or a tuple", MODEL, "return Net(hp, rngs), 1",
        at="model()"),
    "number in a pytree": swap(
        "model\\(\\) must return\nreturned a dict whose leaf \\['b'\\] is the float 0.5\nmake it one with jnp.asarray",
        MODEL, 'return {"w": jnp.ones(3), "b": 0.5}', at="model()"),
    "NumPy array in a pytree": swap(
        "returned a dict whose leaf \\['b'\\]\\[0\\] is a NumPy array float64\\[2\\]\njnp.asarray",
        MODEL, 'return {"w": jnp.ones(3), "b": [np.ones(2)]}', at="model()"),
    "list of floats for a model": swap(
        "returned a list whose leaf \\[0\\] is the float 0.1\njnp.asarray", MODEL, "return [0.1, 0.2]", at="model()"),
    "linen's parameters before its first call": Case(
        "model.params: a linen model's parameters are made by its first call, model\\(x\\)",
        {MODEL: "return linen.Dense(1)", LOSS: "return sum(p.sum() for p in model.params.values())"},
        at="return sum(p.sum() for p in model.params.values())"),
    "linen's apply": Case(
        "model.apply: the linen model that loss and metrics receive has its variables, so call it, model\\(x\\)",
        {MODEL: "return linen.Dense(1)", LOSS: "return jnp.mean(model.apply(model.variables, inputs))"},
        at="return jnp.mean(model.apply(model.variables, inputs))"),
    "optimizer that is not called": swap(
        "optimizer\\(\\) must return an optax optimizer, such as\nreturned the function sgd", OPTIMIZER,
        "return optax.sgd", at="optimizer()"),
    "optimizer's argument": swap(
        "cannot be traced: TypeError: .*momentun\nlearning_rate=0.\nwidth=2|4", OPTIMIZER,
        "return optax.sgd(hp.learning_rate, momentun=0.9)"),
    "misspelled setting": swap(
        "AttributeError: hp.learning_rat: the space has no setting\nlearning_rate, x, width\ncorrect the name",
        OPTIMIZER, "return optax.sgd(hp.learning_rat)"),
    "exception that says nothing": swap(
        "cannot be traced: AssertionError\nwith learning_rate=", LOSS, "assert wanted is None"),
    "shapes that do not fit": swap(
        "cannot be traced: TypeError\nwith learning_rate=", FIRST, "nnx.Linear(5, 4, rngs=rngs)", at=CALLED),
    "schedule's argument": swap(
        "cannot be traced: TypeError: .*missing 1 required positional argument: 'steps'", OPTIMIZER,
        "return optax.sgd(vt.schedules.cosine(hp.learning_rate))"),
}

DATA_CASES = {
    "tuple for the data": swap(
        "data\\(\\) must return vt.Data\\(train=..., valid=...\\), but it returned a tuple", DATA,
        "return (x, y), (x, y)", at="data()"),
    "data that cannot be read": swap(
        "data\\(\\) failed: FileNotFoundError.*'nowhere.npy'", ARRAYS, 'x = np.load("nowhere.npy")'),
    "lengths that differ": swap(
        "every array of `train` must have the same number of examples\ntrain\\[0\\] has 20, train\\[1\\] has 19\n"
        "cut or fill", DATA, "return vt.Data(train=(x, y[1:]), valid=(x, y))"),
    "empty part": swap(
        "`valid` must hold at least one example, but it is empty\nsplit", DATA,
        "return vt.Data(train=(x, y), valid=(x[:0], y[:0]))"),
    "no part": swap("`valid` must hold at least one array, but got None", DATA, "return vt.Data((x, y), None)"),
    "NaN": swap(
        "`train\\[0\\]` must be finite, but 7 of its 60 values are NaN or infinite\nin 3 of its 20 examples\ndrop",
        ARRAYS, f"{ARRAYS}; x[[2, 5]] = np.nan; x[9, 0] = np.inf", at=DATA),
    "too large for 32 bits": swap(
        "`train\\[0\\]` must be finite, but 1 of its 60 values", ARRAYS,
        f"{ARRAYS}; x = x.astype(float); x[0, 0] = 1e300", at=DATA),
    "too large an integer": swap(
        "`train\\[1\\]` must fit into 32 bits\nto 10000000000\nnumber them from 0", ARRAYS,
        f"{ARRAYS}; y = np.arange(20) + 10**10 - 19", at=DATA),
    "bfloat16": swap(
        "`train\\[0\\]` must hold numbers that NumPy can compute with, but its dtype is bfloat16\n"
        ".astype\\(np.float32\\)", ARRAYS, f"{ARRAYS}; x = x.astype(jnp.bfloat16)", at=DATA),
    "text": swap(
        "`train\\[1\\]` must hold numbers, but its dtype is <U1\ninto integers first", ARRAYS,
        f"{ARRAYS}; y = np.array(['a'] * 20)", at=DATA),
    "list": swap(
        "`train\\[1\\]\\[0\\]` must have examples along its first axis\nscalar\nnp.asarray", ARRAYS,
        f"{ARRAYS}; y = list(range(20))", at=DATA),
    "valid unlike train": swap(
        "`valid` must look like `train` but for its length\nfloat32\\[3\\].*float32\\[2\\]\nsame order", DATA,
        "return vt.Data(train=(x, y), valid=(x[:, :2], y))"),
    "batch larger than the data": swap(
        "batch_size must be at most the number of training examples, 20, but got 64\nsmaller batch or more data",
        "batch_size=8", "batch_size=64", at=""),
    "one batch size of several": Case(
        "batch_size must be at most the number of training examples, 20, but got 32",
        {"batch_size=8": 'batch_size="width"', WIDTH: '"width": vt.ordinal([2, 4, 8, 32]),'}),
    "more examples than can be counted": swap(
        "steps times batch_size must be below 4294967296\nfewer steps", "steps=4", "steps=2**30", at=""),
}

ORDINAL = "vt.ordinal\\(\\[...\\]\\), so that it can be static"
REFUSED = {
    "shape": swap(
        "x: a setting used as a shape or a count must be a whole number\nuniform\\(0.0, 0.5\\) drew 0.\n"
        "way out: .*vt.ordinal", FIRST, "nnx.Linear(3, hp.x, rngs=rngs)"),
    "shape, cast": swap(
        f"x: a continuous setting must stay a traced number\n{ORDINAL}", FIRST,
        "nnx.Linear(3, 4 + int(hp.x), rngs=rngs)"),
    "branch": swap(
        f"learning_rate: a continuous setting must stay\njnp.where\n{ORDINAL}", OPTIMIZER,
        f"if hp.learning_rate > 0.1: pass\n    {OPTIMIZER}", at="if hp.learning_rate > 0.1: pass"),
    "NumPy's function": swap(
        "learning_rate: a continuous setting must stay\nway out: use jnp.log10 instead of np.log10", OPTIMIZER,
        "return optax.sgd(10 ** np.log10(hp.learning_rate))"),
    "math's function": swap(
        "x: a continuous setting must stay\nway out: use jnp.exp instead of math.exp", OPTIMIZER,
        "import math; return optax.sgd(hp.learning_rate * math.exp(hp.x))"),
    "max of two": swap(
        "learning_rate: a continuous setting must stay\nway out: use jnp.maximum instead of max", OPTIMIZER,
        "return optax.sgd(max(hp.learning_rate, 1e-3))"),
    "a person's own error": swap(
        "learning_rate: a continuous\nthe code then raises ValueError: the rate must be a float", OPTIMIZER,
        "if not isinstance(hp.learning_rate, float): raise ValueError('the rate must be a float')\n    " + OPTIMIZER,
        at="raise ValueError('the rate must be a float')"),
    "warm-up and cosine": swap(
        "learning_rate: a continuous\nuse vt.schedules.warmup_cosine\\(.*instead of warmup_cosine_decay_schedule",
        OPTIMIZER, "return optax.sgd(optax.warmup_cosine_decay_schedule(0.0, hp.learning_rate, 1, 4))"),
    "exponential decay": swap(
        "x: a continuous\nuse vt.schedules.exponential\\(.*instead of exponential_decay", OPTIMIZER,
        "return optax.sgd(optax.exponential_decay(hp.learning_rate, 2, hp.x))"),
    "warm restarts": swap(
        "learning_rate: a continuous\nuse vt.schedules.sgdr\\(.*instead of sgdr_schedule", OPTIMIZER,
        "cycle = dict(init_value=0.0, peak_value=hp.learning_rate, decay_steps=4, warmup_steps=1)\n"
        "    return optax.sgd(optax.sgdr_schedule([cycle]))", at="return optax.sgd(optax.sgdr_schedule([cycle]))"),
    "dropout": Case(
        "x: a continuous\nuse vt.nn.Dropout\\(rate, rngs=rngs\\) instead of Flax's own",
        {FIRST: f"{FIRST}; self.drop = nnx.Dropout(hp.x, rngs=rngs)",
         CALLED: "self.last(self.drop(self.first(inputs)))"}, at="return self.last(self.drop(self.first(inputs)))"),
    "linen dropout": Case(
        "x: a continuous\nuse vt.nn.LinenDropout\\(rate\\) instead of Flax's own",
        {MODEL: "return LinenNet(hp.x)", LOSS: LOSS.replace("(inputs)", "(inputs, True)"),
         METRICS: METRICS.replace("(inputs)", "(inputs, False)")},
        at="hidden = linen.Dropout(self.rate)(hidden, deterministic=not train)"),
}

OPTIONS = {
    "trials": args("trials must be .* at least 1, but got 0\nleave --trials out for .*512", "--trials", "0"),
    "keep": args("keep.* must be above 0 and at most 1, but got 2\n0.15 is the default", "--keep", "2"),
    "keep, NaN": args("keep.* must be above 0 and at most 1, but got nan", "--keep", "nan"),
    "rounds": args("rounds must be .* at least 1, but got 0\nleave --rounds out for .*6", "--rounds", "0"),
    "more rounds than trials": args(
        "each round needs at least one trial\ntrials=3, rounds=4\nmore trials or fewer",
        "--trials", "3", "--rounds", "4"),
    "seed": args("seed must be .* at least 0, but got -1\nleave --seed out", "--seed", "-1"),
    "steps": args("steps must be .* at least 1, but got 0\nleave --steps out", "--steps", "0"),
    "too many steps": args("steps must be at most 2147483647, but got 9999999999\nfewer", "--steps", "9999999999"),
    "lanes": args("lanes must be .* at least 1, but got 0\nleave --lanes out", "--lanes", "0"),
    "method": args("method must be one of random, .*, pbt, optuna:tpe, .*, but got 'foo'", "--method", "foo"),
    "set an unknown name": args(
        "--set depth=\\.\\.\\.: the space has no setting 'depth'\nlearning_rate, x, width", "--set", "depth=3"),
    "set without a value": args("--set must read NAME=EXPR\nlearning_rate=0.01\nbut got 'x'", "--set", "x"),
    "set to nothing": args("--set must read NAME=EXPR\nbut got 'x='", "--set", "x="),
    "set without a name": args("--set must read NAME=EXPR\nbut got '=1'", "--set", "=1"),
    "set to half a call": args(
        "--set x: 'loguniform\\(1e-4,' cannot be read\nwrite a value", "--set", "x=loguniform(1e-4,"),
    "set to an unknown scale": args("--set x: 'normal' is none of uniform, loguniform", "--set", "x=normal(0, 1)"),
    "set to code": args("--set x: .*is no plain value|cannot be read|is none of", "--set", "x=__import__('os')"),
    "set out of its rule": args(
        "--set x: loguniform\\(0, 1\\): `low` must be above 0", "--set", "x=loguniform(0, 1)"),
    "set twice": args("--set x=\\.\\.\\.: .*must be set once, but 'x' is set twice", "--set", "x=1", "--set", "x=2"),
    "plan without a number": args(
        "--plan must read like devices=2,tiles=4,lanes=16,every=50\nbut got 'lanes'", "--plan", "lanes"),
    "plan of no such part": args("--plan must read like\nbut got 'rows=3'", "--plan", "rows=3"),
    "plan of 0": args("--plan must read like.*at least 1.*but got 'lanes=0'", "--plan", "lanes=0"),
    "plan of too many devices": args("--plan: devices must be at most \\d+\nbut got 4096", "--plan", "devices=4096"),
    "out below a file": args(
        "exp.py/study cannot be used as a study's directory\nNot a directory\nanother --out", "--out", "exp.py/study"),
    "out is a file": args(
        "exp.py cannot be used as a study's directory\nFile exists|Not a directory", "--out", "exp.py"),
    "out without a name": args("--out must name a directory, but got an empty name\nleave it out", "--out", ""),
}
# fmt: on

CASES = {
    f"{group}: {name}": case
    for group, cases in {
        "loading": LOADING, "space": SPACES, "parts": PARTS, "data": DATA_CASES, "refused": REFUSED, "options": OPTIONS,
    }.items()
    for name, case in cases.items()
}  # fmt: skip

COMPILED: list[str] = []
jax.monitoring.register_event_duration_secs_listener(
    lambda name, *_, **more: COMPILED.append(f"{name} {more}") if "backend_compile" in name else None
)


@pytest.fixture(autouse=True)
def here(monkeypatch, tmp_path) -> Path:
    """Every test runs in an empty directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def tree() -> dict[str, bytes | None]:
    """Every file and directory below the current one, to the byte."""
    return {str(p): p.read_bytes() if p.is_file() else None for p in Path().rglob("*")}


def command(*argv: str) -> int:
    try:
        return cli.main(argv)
    except SystemExit as stopped:  # argparse
        return int(stopped.code or 0)


def fails(capsys, *argv: str, words: str) -> str:
    """Runs a command in this process that must fail and change nothing; returns its message."""
    before = tree()
    COMPILED.clear()
    code = command(*argv)
    out, message = capsys.readouterr()
    assert code == 2, out + message
    assert out == ""
    check_message(message, words)
    assert tree() == before
    assert COMPILED == []
    return message


def check_message(message: str, words: str) -> None:
    assert message.startswith(("error: ", "usage: ")), message
    assert "Traceback" not in message
    for word in words.strip().split("\n"):
        assert re.search(word, message), f"{word!r} is not in:\n{message}"


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_mistake_is_told_and_leaves_nothing_behind(case, capsys):
    source = case.source
    Path("exp.py").write_bytes(source.encode("utf-8", "surrogateescape"))
    message = fails(capsys, "run", "exp.py", "--quiet", *(case.args or ("--trials", "16")), words=case.words)
    if case.at:
        wanted = f"def {case.at[:-1]}" if case.at.endswith("()") else case.at
        line = next(n for n, code in enumerate(source.splitlines(), 1) if wanted in code)
        assert re.search(rf"exp\.py:{line}: .*{re.escape(case.at)}", message), message


# fmt: off
OTHER_COMMANDS = {
    "no such file": (("run", "none.py"), "must be a Python file, but 'none.py' does not exist\nvmaptune new"),
    "a directory": (("run", "folder"), "must be a Python file, but 'folder' is a directory\nvmaptune new"),
    "check of no such file": (("check", "none.py"), "must be a Python file, but 'none.py' does not exist"),
    "check of bad options": (("check", "exp.py", "--trials", "0"), "trials must be .* at least 1, but got 0"),
    "no experiment of that name": (
        ("run", "exp.py:other"), "must define 'other' as a vt.Experiment, but the experiments in it are: experiment"),
    "new, there already": (("new", "exp.py"), "exp.py exists already and is left as it is\nname a file that does not"),
    "new, a directory": (("new", "folder"), "folder exists already"),
    "new, nowhere": (("new", "none/exp.py"), "none/exp.py cannot be written: No such file\nname another place"),
    "new, below a file": (("new", "exp.py/exp.py"), "cannot be written: Not a directory"),
    **{
        f"{name} of {where}": ((name, where, *more), f"{where} holds no study\nno study.db\n--out")
        for name, more in {"status": (), "best": (), "trials": (), "replay": ("0",)}.items()
        for where in ("none", "folder", "exp.py")
    },
    "trials that are no number": (("run", "exp.py", "--trials", "abc"), "--trials: invalid int value: 'abc'"),
    "keep that is no number": (("run", "exp.py", "--keep", "most"), "--keep: invalid float value: 'most'"),
    "trial that is no number": (("replay", "folder", "best"), "TRIAL: invalid int value: 'best'"),
    "option that is not there": (("run", "exp.py", "--trails", "8"), "unrecognized arguments: --trails 8"),
    "command that is not there": (("optimize", "exp.py"), "invalid choice: 'optimize' \\(choose from .*run"),
    "format that is not there": (("best", "folder", "--format", "yaml"), "invalid choice: 'yaml'.*csv"),
    "no file": (("run",), "the following arguments are required: EXP"),
}
# fmt: on


@pytest.mark.parametrize(("argv", "words"), OTHER_COMMANDS.values(), ids=OTHER_COMMANDS.keys())
def test_a_mistake_on_the_command_line_is_told(argv, words, capsys):
    Path("exp.py").write_text(FILE)
    Path("folder").mkdir()
    fails(capsys, *argv, words=words)


def test_no_command_prints_the_help(capsys):
    assert command() == 2
    assert "run" in capsys.readouterr().out


# ---- a study that is there ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A directory with an experiment and its finished study, runs/exp."""
    directory = tmp_path_factory.mktemp("finished")
    (directory / "exp.py").write_text(FILE)
    out = str(directory / "runs" / "exp")
    options = ["--trials", "8", "--rounds", "1", "--quiet"]
    assert command("run", str(directory / "exp.py"), "--out", out, *options) == 0
    return directory


@pytest.fixture
def study(finished, monkeypatch) -> Iterator[Path]:
    """The same, as the current directory; the experiment's file is put back after the test."""
    monkeypatch.chdir(finished)
    yield finished
    (finished / "exp.py").write_text(FILE)


def test_a_study_that_is_there_is_left_to_the_byte(study, capsys):
    words = "runs/exp already holds a study\n8 COMPLETE\nchoose another --out, or delete runs/exp"
    fails(capsys, "run", "exp.py", "--trials", "16", words=words)
    fails(capsys, "run", "exp.py", "--trials", "16", "--out", "runs/exp", words=words)


def test_reading_a_study_changes_nothing(study, capsys):
    before = tree()
    for name in ("status", "best", "trials"):
        for form in ("table", "csv", "json"):
            assert command(name, "runs/exp", "--format", form) == 0, capsys.readouterr()
    assert tree() == before


def test_replay_of_an_unknown_trial(study, capsys):
    fails(capsys, "replay", "runs/exp", "99", words="runs/exp has no trial 99; it has trials 0 to 7")
    fails(capsys, "replay", "runs/exp", "-1", words="runs/exp has no trial -1; it has trials 0 to 7")


def test_replay_needs_the_file_that_the_study_ran(study, capsys):
    Path("exp.py").write_text(FILE.replace("steps=4", "steps=5"))
    fails(capsys, "replay", "runs/exp", "0", words="exp.py has changed since the study ran\nbring the old one back")
    Path("exp.py").unlink()
    fails(capsys, "replay", "runs/exp", "0", words="exp.py is not there\nbring it back")


# ---- what is no mistake ------------------------------------------------------------------------------


def test_a_finite_setting_may_be_a_shape_or_a_branch_and_is_static_then(capsys):
    source = FILE.replace(FIRST, "nnx.Linear(3, 4, rngs=rngs) if hp.x > 1 else nnx.Linear(3, 4, rngs=rngs)")
    source = source.replace(X, "vt.ordinal([0.5, 1.5])").replace("(4, 1, rngs", "(4, hp.width - hp.width + 1, rngs")
    source = source.replace(RATE, "vt.ordinal([0.1, 0.2])")
    Path("exp.py").write_text(source)
    assert command("check", "exp.py", "--trials", "8") == 0
    out = capsys.readouterr().out
    assert re.search(r"learning_rate +traced", out)
    assert re.search(r"x +static", out)
    assert re.search(r"width +static", out)


def test_the_file_that_new_writes_runs_as_it_is(capsys):
    assert command("new", "first try.py") == 0
    assert "python -m vmaptune check 'first try.py'" in capsys.readouterr().out
    written = Path("first try.py").read_text()
    assert "python -m vmaptune run 'first try.py'" in written
    assert "sklearn" not in written
    assert command("check", "first try.py") == 0
    tiny = ["--trials", "16", "--rounds", "1", "--steps", "20", "--set", "width=16", "--quiet"]
    assert command("run", "first try.py", *tiny) == 0
    out = capsys.readouterr().out
    assert "width = 16" in out.replace("width         =", "width =")
    assert "on the test part" in out


# ---- as a person runs it -----------------------------------------------------------------------------


def vmaptune(*argv: str, python: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    return subprocess.run(
        [sys.executable, *python, "-m", "vmaptune", *argv], capture_output=True, text=True, timeout=120,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
    )  # fmt: skip


def test_in_a_process_of_its_own(finished):
    Path("exp.py").write_text(FILE.replace(X, "vt.uniform(2, 1)"))
    shutil.copytree(finished / "runs", "runs")
    before = tree()
    for argv, words in {
        ("run", "exp.py"): "`low <= high` must hold\nexp.py:10",
        ("best", "folder"): "folder holds no study",
        ("replay", "runs/exp", "99"): "has no trial 99",
    }.items():
        done = vmaptune(*argv)
        assert (done.returncode, done.stdout) == (2, "")
        check_message(done.stderr, words)
    assert tree() == before


def test_help_starts_nothing_heavy():
    done = vmaptune("--help", python=("-X", "importtime"))
    assert done.returncode == 0
    assert "COMMAND" in done.stdout
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines() if "|" in line}
    assert "vmaptune.cli" in imported
    assert not imported & {"jax", "flax", "optax", "numpy", "scipy", "sqlite3"}


def test_every_command_and_option_has_help():
    parser = cli.build_parser()
    commands = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    described = {a.dest: a.help for a in commands._choices_actions}
    assert set(described) == set(commands.choices)
    for name, command_parser in commands.choices.items():
        assert described[name], name
        command_parser.format_help()
        for action in command_parser._actions:
            assert action.help, f"{name} {action.dest}"


def test_a_search_in_which_nothing_trains_ends_with_a_code_of_its_own(tmp_path, capsys, monkeypatch):
    path = tmp_path / "exp.py"
    path.write_text(
        "import jax.numpy as jnp\nimport vmaptune as vt\n"
        "experiment = vt.Experiment(space={'a': vt.uniform(1.0, 2.0)}, objective='y', steps=2, task=vt.Task(\n"
        "    init=lambda hp, key: jnp.zeros(()), step=lambda state, hp, key: (state + hp.a, jnp.nan),\n"
        "    evaluate=lambda state, hp: {'y': state}, has_loss=True))\n"
    )
    monkeypatch.setattr("vmaptune.view.report.available", lambda: False)
    assert cli.main(["run", str(path), "--trials", "4", "--out", str(tmp_path / "s"), "--quiet"]) == 3
    said = capsys.readouterr().out
    assert said.count("no setting trained to a finite result: lower the upper end of the learning rate") == 1
    assert "best_model" not in said
    assert "best/" not in said


def test_the_version_is_said(capsys):
    from vmaptune import __version__

    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.strip() == f"vmaptune {__version__}"
