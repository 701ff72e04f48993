"""Bad input: a clear error with exit code 2 before anything compiles, and nothing is written or lost.

Each case is one experiment file, made from `FILE` by replacements, and a command line; the words are what its
message must say: what is wrong, the rule, what was received, the way out.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
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

# what is replaced: one line or expression of FILE each
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

    name: str
    words: str  # regular expressions that the message must hold, one a line
    swap: dict[str, str] = field(default_factory=dict)
    args: tuple[str, ...] = ()
    text: str | None = None  # the whole file, instead of FILE
    at: str | None = None  # code of the line of the person's file that the message must point at


def case(name, words, swap=None, *args, text=None, at=None):
    return Case(name, words, swap or {}, args, text, at)


def source_of(case: Case) -> str:
    if case.text is not None:
        return case.text
    source = FILE
    for old, new in case.swap.items():
        assert source.count(old) == 1, f"{old!r} is {source.count(old)} times in FILE"
        source = source.replace(old, new)
    return source


def leaves_a_way(name: str) -> str:
    return rf"{name}.*must.*but"


LOADING = [
    case(
        "syntax error",
        "not valid Python\n'\\(' was never closed",
        text="import vmaptune as vt\nspace = vt.x(\n",
        at="space = vt.x(",
    ),
    case(
        "no name", "does not import: NameError: name 'spcae' is not defined", {SPACE: "space=spcae"}, at="space=spcae"
    ),
    case("return at the top", "not valid Python\n'return' outside function", text="x = 1\nreturn x\n", at="return x"),
    case(
        "missing module",
        "does not import: ModuleNotFoundError.*no_such_module\nway out: install 'no_such_module'",
        text="import jax\nimport no_such_module\n",
        at="import no_such_module",
    ),
    case(
        "missing name",
        "does not import: ImportError: cannot import name 'nothing'",
        text="from json import nothing\n",
        at="from json import nothing",
    ),
    case(
        "exception at its line",
        "does not import: ZeroDivisionError: division by zero",
        text="x = 1\n\ny = x / 0\n",
        at="y = x / 0",
    ),
    case("exception without a text", "does not import: AssertionError", text="assert 1 > 2\n", at="assert 1 > 2"),
    case("sys.exit", "does not import: SystemExit: 3", text="import sys\nsys.exit(3)\n", at="sys.exit(3)"),
    case("null byte", "not valid Python|cannot be read as a Python file", text="x = '\0'\n"),
    case(
        "no experiment",
        "must define `experiment = vt.Experiment\nbut it defines none\nvmaptune new",
        text="import vmaptune as vt\n",
    ),
    case(
        "another experiment",
        "must define `experiment = vt.Experiment\nbut it defines `experiment` as dict",
        text="experiment = {'space': {}}\n",
    ),
    case(
        "two experiments",
        "must define one experiment, but it defines 2: other, experiment\nname the one to run: exp.py:other",
        {
            EXPERIMENT: f"other = vt.Experiment({SPACE}, model=model, optimizer=optimizer, loss=loss, data=data)\n"
            + EXPERIMENT
        },
    ),
    case(
        "experiment assigned twice",
        "must define one 'experiment', but it does so at lines \\d+, \\d+",
        {EXPERIMENT: f"experiment = 1\n{EXPERIMENT}"},
    ),
    case(
        "unknown part",
        "does not import: TypeError.*unexpected keyword argument 'optimiser'",
        {"optimizer=optimizer": "optimiser=optimizer"},
    ),
    case("missing part", "model must be given\n`task=`", {"model=model, ": ""}),
    case("part that is no function", "`loss` must be a function, but got 3", {"loss=loss": "loss=3"}),
    case(
        "direction",
        '`direction` must be "minimize" or "maximize", but got \'up\'',
        {'objective="error"': 'objective="error", direction="up"'},
    ),
    case("steps of the experiment", "`steps` must be a whole number of at least 1, but got 0", {"steps=4": "steps=0"}),
    case(
        "batch size of the experiment",
        "`batch_size` must be a whole number of at least 1, but got 2.5",
        {"batch_size=8": "batch_size=2.5"},
    ),
    case(
        "batch size by name",
        "`batch_size`.*the name of a setting, but.*no setting 'size'\nlearning_rate, x, width",
        {"batch_size=8": 'batch_size="size"'},
    ),
    case(
        "continuous batch size",
        "'x' that gives `batch_size` must be a finite set\nbut it is uniform\nvt.ordinal",
        {"batch_size=8": 'batch_size="x"'},
    ),
    case(
        "continuous steps by the setting's name",
        "'steps' that gives `steps` must be a finite set\nvt.ordinal",
        {WIDTH: '"steps": vt.loguniform(10, 100),', "steps=4": "steps=None"},
    ),
]

SPACES = [
    case(
        "loguniform from 0",
        "loguniform\\(0, 1\\)\n`low` must be above 0\nbut got 0\nor_zero",
        {RATE: "vt.loguniform(0, 1)"},
        at='"learning_rate": vt.loguniform(0, 1),',
    ),
    case(
        "reverseloguniform to 1",
        "reverseloguniform\\(0.9, 1.0\\)\n`high` must be below 1\nbut got 1.0\n0.999",
        {X: "vt.reverseloguniform(0.9, 1.0)"},
        at='"x": vt.reverseloguniform(0.9, 1.0),',
    ),
    case("bounds swapped", "`low <= high` must hold\nlow=2.0, high=1.0\nswap", {X: "vt.uniform(2.0, 1.0)"}),
    case("NaN", "`high` must be a finite number, but got nan", {X: 'vt.uniform(0.0, float("nan"))'}),
    case("infinity", "`low` must be a finite number, but got -inf", {X: "vt.uniform(-np.inf, 0)"}),
    case("a text for a bound", "`low` must be a finite number, but got '1e-4'", {X: "vt.loguniform('1e-4', 1)"}),
    case("fraction as a whole number", "`high` must be a whole number, but got 7.5", {X: "vt.randint(1, 7.5)"}),
    case("empty choice", "choice\\(\\[\\]\\)\nmust be at least one value\nempty", {X: "vt.choice([])"}),
    case("option twice", "must be there once, but 'a' is there twice", {X: "vt.choice(['a', 'b', 'a'])"}),
    case("object as an option", "must be a string, a number\ngot <jax\ngive it a name", {X: "vt.choice([nnx.relu])"}),
    case("ordinal that does not increase", "numbers must increase\nsort them", {X: "vt.ordinal([2, 1])"}),
    case(
        "probability of zero",
        "`or_zero` must be a probability from 0 to 1, but got 2",
        {X: "vt.uniform(0, 1, or_zero=2)"},
    ),
    case(
        "name twice in the dict",
        "'x' must be named once, but it is also at line 10\nanother name",
        {WIDTH: f'"x": {X},'},
        at="",
    ),
    case(
        "name twice in the pairs",
        "'x' must be named once, but it is named twice\nrename",
        {SPACE: 'space=[("x", vt.uniform(0, 1)), ("x", vt.uniform(0, 1))]'},
    ),
    case(
        "name with a space",
        "name must be one that Python can spell\ngot 'learning rate'\n'learning_rate' would do",
        {'"learning_rate": ': '"learning rate": '},
    ),
    case(
        "keyword as a name",
        "name must be one that Python can spell\ngot 'class'\n'class_' would do",
        {'"width": ': '"class": '},
    ),
    case("empty space", "must hold at least one setting\nloguniform", {SPACE: "space={}"}),
    case("constructor that is not called", "'x' must be a distribution\nbut got <function", {X: "vt.uniform"}),
]

PARTS = [
    case(
        "objective",
        "objective 'accuracy' must be one of the metrics\nbut they are 'error'\nobjective=",
        {'objective="error"': 'objective="accuracy"'},
    ),
    case(
        "objective without metrics",
        "objective 'error' must be one of the metrics\nbut they are 'loss'",
        {"metrics=metrics, ": ""},
    ),
    case(
        "metrics that is no dict",
        "metrics\\(\\) must return a dict of scalars, but it returned JitTracer|DynamicJax",
        {METRICS: "return model(inputs).mean()"},
    ),
    case(
        "metric of a vector",
        "'error' must be a real scalar, but its shape is \\(20, 1\\)\ntake the mean",
        {METRICS: 'return {"error": model(inputs)}'},
    ),
    case(
        "loss of a vector",
        "loss\\(\\) must return a scalar, but its shape is \\(8,\\)\ntake the mean",
        {LOSS: "return (model(inputs)[:, 0] - wanted) ** 2"},
        at="loss()",
    ),
    case(
        "complex loss",
        "loss\\(\\) must return a real float, but its dtype is complex64\nreal part",
        {LOSS: "return (model(inputs) * 1j).mean()"},
        at="loss()",
    ),
    case(
        "whole-number loss",
        "loss\\(\\) must return a real float, but its dtype is int32\ninteger has no gradient",
        {LOSS: "return (model(inputs) > 0).sum()"},
        at="loss()",
    ),
    case(
        "loss with more",
        "loss\\(\\) must return a scalar array, but it returned tuple\nreturn the loss alone",
        {LOSS: "return model(inputs).mean(), {}"},
        at="loss()",
    ),
    case(
        "loss that returns nothing",
        "loss\\(\\) must return a scalar array, but it returned NoneType",
        {LOSS: "model(inputs).mean()"},
        at="loss()",
    ),
    case(
        "model that returns its class",
        "model\\(\\) must return\nreturned the class Net\nthe model itself, not its class",
        {MODEL: "return Net"},
        at="model()",
    ),
    case(
        "model that returns a tuple",
        "model\\(\\) must return\nreturned tuple\nnot its class or a tuple",
        {MODEL: "return Net(hp, rngs), 1"},
    ),
    case(
        "optimizer that is no optimizer",
        "optimizer\\(\\) must return an optax optimizer\nreturned function|float",
        {OPTIMIZER: "return optax.sgd"},
        at="optimizer()",
    ),
    case(
        "optimizer's mistake",
        "cannot be traced: TypeError: .*momentun\nlearning_rate=",
        {OPTIMIZER: "return optax.sgd(hp.learning_rate, momentun=0.9)"},
        at="return optax.sgd(hp.learning_rate, momentun=0.9)",
    ),
    case(
        "misspelled setting",
        "AttributeError: hp.learning_rat: the space has no setting\nlearning_rate, x, width",
        {OPTIMIZER: "return optax.sgd(hp.learning_rat)"},
        at="return optax.sgd(hp.learning_rat)",
    ),
    case(
        "error without a text",
        "cannot be traced: AssertionError\nwith learning_rate=",
        {LOSS: "assert wanted is None"},
        at="assert wanted is None",
    ),
    case(
        "shapes that do not fit",
        "cannot be traced: TypeError\nwidth=",
        {FIRST: "nnx.Linear(5, 4, rngs=rngs)"},
        at="return self.last(nnx.relu(self.first(inputs)))",
    ),
    case(
        "schedule's mistake",
        "cannot be traced: TypeError: .*missing 1 required positional argument: 'steps'",
        {OPTIMIZER: "return optax.sgd(vt.schedules.cosine(hp.learning_rate))"},
        at="return optax.sgd(vt.schedules.cosine(hp.learning_rate))",
    ),
]

DATA_CASES = [
    case(
        "data as a tuple",
        "data\\(\\) must return vt.Data\\(train=..., valid=...\\), but it returned tuple",
        {DATA: "return (x, y), (x, y)"},
        at="data()",
    ),
    case(
        "data that cannot be read",
        "data\\(\\) failed: FileNotFoundError.*'nowhere.npy'",
        {ARRAYS: 'x = np.load("nowhere.npy")'},
        at='x = np.load("nowhere.npy")',
    ),
    case(
        "lengths that differ",
        "every array of `train` must have the same number of examples\n"
        "train\\[0\\] has 20, train\\[1\\] has 19\ncut or fill",
        {DATA: "return vt.Data(train=(x, y[1:]), valid=(x, y))"},
        at="return vt.Data(train=(x, y[1:]), valid=(x, y))",
    ),
    case(
        "empty data",
        "`valid` must hold at least one example, but it is empty\nsplit",
        {DATA: "return vt.Data(train=(x, y), valid=(x[:0], y[:0]))"},
    ),
    case("no data", "`valid` must hold at least one array, but got None", {DATA: "return vt.Data((x, y), None)"}),
    case(
        "NaN in the data",
        "`train\\[0\\]` must be finite, but 7 of its 60 values\nin 3 of its 20 examples\ndrop",
        {ARRAYS: f"{ARRAYS}; x[[2, 5]] = np.nan; x[9, 0] = np.inf"},
    ),
    case(
        "float that becomes infinite",
        "`train\\[0\\]` must be finite, but 1 of its 60 values",
        {ARRAYS: f"{ARRAYS}; x = x.astype(float); x[0, 0] = 1e300"},
    ),
    case(
        "integer of more than 32 bits",
        "`train\\[1\\]` must fit into 32 bits\nto 10000000000\nnumber them from 0",
        {ARRAYS: f"{ARRAYS}; y = np.arange(20) + 10**10 - 19"},
    ),
    case(
        "text in the data",
        "`train\\[1\\]` must hold numbers, but its dtype is <U1\ninto integers first",
        {ARRAYS: f"{ARRAYS}; y = np.array(['a'] * 20)"},
    ),
    case(
        "lists in the data",
        "`train\\[1\\]\\[0\\]` must have examples along its first axis\nscalar\nnp.asarray",
        {ARRAYS: f"{ARRAYS}; y = list(range(20))"},
    ),
    case(
        "valid unlike train",
        "`valid` must look like `train` but for its length\nbut train's rows\nsame order",
        {DATA: "return vt.Data(train=(x, y), valid=(x[:, :2], y))"},
    ),
    case(
        "batch larger than the data",
        "batch_size must be at most the number of training examples, 20\nbut got 64\nsmaller batch or more data",
        {"batch_size=8": "batch_size=64"},
    ),
    case(
        "one batch size of several",
        "batch_size must be at most the number of training examples, 20\nbut got 32",
        {"batch_size=8": 'batch_size="width"', "vt.ordinal([2, 4])": "vt.ordinal([2, 4, 8, 32])"},
    ),
    case(
        "more examples than can be counted",
        "steps times batch_size must be below 4294967296\nfewer steps",
        {"steps=4": "steps=2**30"},
    ),
]

OPTIONS = [
    case("no trials", f"{leaves_a_way('trials')} got 0\n--trials.*512", None, "--trials", "0"),
    case("keep", f"{leaves_a_way('keep')} got 2\n0.15 is the default", None, "--keep", "2"),
    case("keep that is NaN", f"{leaves_a_way('keep')} got nan", None, "--keep", "nan"),
    case("no rounds", f"{leaves_a_way('rounds')} got 0\n--rounds.*4", None, "--rounds", "0"),
    case(
        "more rounds than trials",
        "each round needs at least one trial\ntrials=3, rounds=4\nmore trials or fewer",
        None,
        "--trials",
        "3",
        "--rounds",
        "4",
    ),
    case("seed below 0", f"{leaves_a_way('seed')} got -1\n--seed", None, "--seed", "-1"),
    case("no steps", f"{leaves_a_way('steps')} got 0\n--steps", None, "--steps", "0"),
    case("too many steps", f"{leaves_a_way('steps')} got 9999999999", None, "--steps", "9999999999"),
    case("no lanes", f"{leaves_a_way('lanes')} got 0\n--lanes", None, "--lanes", "0"),
    case("method", "method must be one of random, sobol, halton, grid, but got 'foo'", None, "--method", "foo"),
    case(
        "setting that is not there",
        "--set depth=\\.\\.\\.: the space has no setting 'depth'\nlearning_rate, x, width",
        None,
        "--set",
        "depth=3",
    ),
    case("setting without a value", "--set must read NAME=EXPR\nbut got 'x'\nlearning_rate=0.01", None, "--set", "x"),
    case("setting with an empty value", "--set must read NAME=EXPR\nbut got 'x='", None, "--set", "x="),
    case(
        "setting that cannot be read",
        "--set x: 'loguniform\\(1e-4,' cannot be read\nwrite a value",
        None,
        "--set",
        "x=loguniform(1e-4,",
    ),
    case("setting of no such kind", "--set x: 'normal' is none of\nloguniform", None, "--set", "x=normal(0, 1)"),
    case(
        "setting out of its rule",
        "--set x: loguniform\\(0, 1\\): `low` must be above 0",
        None,
        "--set",
        "x=loguniform(0, 1)",
    ),
    case(
        "setting twice",
        "--set x=\\.\\.\\.: a setting must be set once, but 'x' is set twice",
        None,
        "--set",
        "x=1",
        "--set",
        "x=2",
    ),
    case(
        "plan without a number",
        "--plan must read like devices=2,lanes=16,every=50\nbut got 'lanes'",
        None,
        "--plan",
        "lanes",
    ),
    case("plan of no such part", "--plan must read like\nbut got 'tiles=3'", None, "--plan", "tiles=3"),
    case(
        "plan of more devices than there are",
        "--plan: devices must be at most \\d+\nbut got 4096",
        None,
        "--plan",
        "devices=4096",
    ),
]

WAY_STATIC = "vt.ordinal\\(\\[...\\]\\), so that it can be static"
REFUSED = [
    case("continuous shape", "x: a setting used as a shape or a count must be a whole number\nuniform\\(0.0, 0.5\\) drew 0\n"
         "way out: .*vt.ordinal", {FIRST: "nnx.Linear(3, hp.x, rngs=rngs)"},
         at="self.first = nnx.Linear(3, hp.x, rngs=rngs)"),
    case("continuous shape, cast", f"x: a continuous setting must stay a traced number\n{WAY_STATIC}",
         {FIRST: "nnx.Linear(3, 4 + int(hp.x), rngs=rngs)"}, at="self.first = nnx.Linear(3, 4 + int(hp.x), rngs=rngs)"),
    case("continuous setting in a branch", f"learning_rate: a continuous setting must stay\njnp.where\n{WAY_STATIC}",
         {OPTIMIZER: f"if hp.learning_rate > 0.1: pass\n    {OPTIMIZER}"}, at="if hp.learning_rate > 0.1: pass"),
    case("warm-up and cosine", "learning_rate: a continuous\nway out: use vt.schedules.warmup_cosine\\(.*instead of "
         "warmup_cosine_decay_schedule",
         {OPTIMIZER: "return optax.sgd(optax.warmup_cosine_decay_schedule(0.0, hp.learning_rate, 1, 4))"},
         at="return optax.sgd(optax.warmup_cosine_decay_schedule(0.0, hp.learning_rate, 1, 4))"),
    case("exponential decay", "x: a continuous\nway out: use vt.schedules.exponential\\(.*instead of exponential_decay",
         {OPTIMIZER: "return optax.sgd(optax.exponential_decay(hp.learning_rate, 2, hp.x))"},
         at="return optax.sgd(optax.exponential_decay(hp.learning_rate, 2, hp.x))"),
    case("warm restarts", "learning_rate: a continuous\nway out: use vt.schedules.sgdr\\(.*instead of sgdr_schedule",
         {OPTIMIZER: "cycle = dict(init_value=0.0, peak_value=hp.learning_rate, decay_steps=4, warmup_steps=1)\n"
          "    return optax.sgd(optax.sgdr_schedule([cycle]))"}, at="return optax.sgd(optax.sgdr_schedule([cycle]))"),
    case("dropout", "x: a continuous\nway out: use vt.nn.Dropout\\(rate, rngs=rngs\\) instead of Flax's own",
         {FIRST: f"{FIRST}; self.drop = nnx.Dropout(hp.x, rngs=rngs)",
          CALLED: "self.last(self.drop(self.first(inputs)))"}, at="return self.last(self.drop(self.first(inputs)))"),
    case("linen dropout", "x: a continuous\nway out: use vt.nn.LinenDropout\\(rate\\) instead of Flax's own",
         {MODEL: "return LinenNet(hp.x)", LOSS: LOSS.replace("(inputs)", "(inputs, True)"),
          METRICS: METRICS.replace("(inputs)", "(inputs, False)")},
         at="hidden = linen.Dropout(self.rate)(hidden, deterministic=not train)"),
]  # fmt: skip


@pytest.fixture(autouse=True)
def compiled(monkeypatch, tmp_path):
    """Runs in an empty directory, and counts what is compiled."""
    monkeypatch.chdir(tmp_path)
    found: list[str] = []
    return found


def tree(directory: Path) -> dict[str, bytes | None]:
    """Every file and directory below this one, to the byte."""
    return {str(p.relative_to(directory)): p.read_bytes() if p.is_file() else None for p in directory.rglob("*")}


def fails(capsys, *argv: str, words: str = "", code: int = 2) -> str:
    """Runs a command in this process that must fail, leaving the directory as it was; returns its message."""
    before = tree(Path())
    COMPILED.clear()
    try:
        status = cli.main(argv)
    except SystemExit as stopped:  # argparse
        status = stopped.code
    out, message = capsys.readouterr()
    assert status == code, out + message
    assert out == ""
    check_message(message, words)
    assert tree(Path()) == before
    assert COMPILED == []
    return message


def check_message(message: str, words: str) -> None:
    assert re.match(r"error: |usage: ", message), message
    assert "Traceback" not in message
    for word in filter(None, words.split("\n")):
        assert re.search(word, message), f"{word!r} is not in:\n{message}"


COMPILED: list[str] = []
jax.monitoring.register_event_duration_secs_listener(
    lambda name, *_, **__: COMPILED.append(name) if "backend_compile" in name else None
)

ALL = {
    f"{group}: {c.name}": c
    for group, cases in {
        "loading": LOADING, "space": SPACES, "parts": PARTS, "data": DATA_CASES, "options": OPTIONS,
        "refused": REFUSED,
    }.items()
    for c in cases
}  # fmt: skip


@pytest.mark.parametrize("case", ALL.values(), ids=ALL.keys())
def test_a_mistake_is_told_and_leaves_nothing_behind(case, capsys):
    source = source_of(case)
    Path("exp.py").write_text(source)
    message = fails(capsys, "run", "exp.py", "--quiet", *(case.args or ("--trials", "16")), words=case.words)
    if case.at:
        line = next(n for n, code in enumerate(source.splitlines(), 1) if case.at.removesuffix("()") in code)
        assert re.search(rf"exp\.py:{line}: {re.escape(case.at)}", message), message
