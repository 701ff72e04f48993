"""`retest` on the digits: the data of then, two classes' labels swapped, inputs times 10, and 10 times the noise.

What is true is found without vmaptune's engine: a study from the beginning on today's data, then its best setting and
the old best ones trained again by a plain loop on seeds of their own, and compared by Welch's test. A verdict is right
when it says what that says: "moved" where the best of the old ones is worse at the 1 % level, else "still best". Where
a retest says "unclear, run again with more repeats", that is done, once.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from _report import row
from _studies import DIGITS, Bench, Tally, is_finished

import vmaptune as vt
from vmaptune.experiment import load_experiment
from vmaptune.study._retest import DRAWS, REPEATS, TOP, plan_retest

CASES = {
    "the same data": "",
    "labels of two classes swapped": "y = np.where(y == 3, 8, np.where(y == 8, 3, y))",
    "inputs times 10": "x = 10 * x",
    "10 times the noise": "x = x + np.float32(0.9) * noise",
}
STUDY: dict[str, Any] = {"trials": 192, "rounds": 3, "report": False}
SEEDS = 32  # of the plain loop, for each setting
LEVEL = 0.01
WIDTH = 32
MORE = "384"  # repeats of a retest that was unclear with 128


def retests(bench: Bench, tries: int) -> None:
    """So many retests of one old study in each case."""
    tally = bench.tally("retest")
    old_file = experiment_file(bench.place, "then", "")
    old = bench.place / "retest-then"
    searched(old_file, old)
    then = plan_retest(old, TOP, REPEATS, DRAWS)[0]["settings"]
    for case, change in CASES.items():
        name = case.replace(" ", "-")
        file = experiment_file(bench.place, name, change)
        if f"{case}: truth" not in tally:
            fresh = old if not change else bench.place / f"retest-{name}-fresh"
            searched(file, fresh)
            old_ones = sorted(then, key=lambda params: known_errors(file, params).mean())
            tally[f"{case}: truth"] = compared(file, old_ones[0], dict(vt.load(fresh).best_params))
            tally.keep()
            print(case, tally[f"{case}: truth"], flush=True)
        for i in [*range(tries), *range(tries)]:
            if bench.over:
                return
            if i >= len(tally.get(case, [])):
                tally.note(case, [asked(bench, old, file, f"{name}-{i}", 1000 + i)])
            elif len(tally[case][i]) == 1 and tally[case][i][0]["verdict"] == "unclear":  # it says: with more repeats
                tally[case][i].append(asked(bench, old, file, f"{name}-{i}-more", 2000 + i, "--repeats", MORE))
            tally.keep()
            print(case, tally[case][i], flush=True)


def asked(bench: Bench, old: Path, file: Path, name: str, seed: int, *more: str) -> dict[str, Any]:
    """One retest, and whether plain retraining confirms that the best setting has moved, where it says so."""
    out = bench.place / f"retest-{name}"
    if not is_finished(out):
        ended = bench.command.run(
            ["retest", str(old), "--exp", str(file), "--out", str(out), "--seed", str(seed), "--quiet", "--no-report",
             *more]
        )  # fmt: skip
        assert ended.code == 0, ended.errors
    found = vt.load(out).result["retest"]
    moved = found["verdict"] == "moved"
    confirmed = compared(file, found["old"]["params"], found["new"]["params"]) if moved else None
    return {name: found[name] for name in ("verdict", "gain", "p", "repeats")} | {"confirmed": confirmed}


def rows(bench: Bench, tries: int) -> list[dict]:
    tally = bench.tally("retest")
    found = []
    for case in CASES:
        truth, answers = tally.get(f"{case}: truth"), tally.get(case, [])
        if not truth:
            continue
        verdicts = [verdicts[-1] for verdicts in answers]
        moved = [v for v in verdicts if v["verdict"] == "moved"]
        confirmed = sum(v["confirmed"]["p"] < LEVEL for v in moved)
        expected = "moved" if truth["moved"] else "still best"
        right = sum(v["verdict"] == expected for v in verdicts)
        found.append(
            row(f"retest, {case}: says {expected!r}, as a new study and plain retraining do, of {tries}",
                right, f"{tries}", right >= tries and len(verdicts) >= tries, truth=truth,
                verdicts=[[[v["verdict"], v["gain"], v["repeats"]] for v in each] for each in answers])
        )  # fmt: skip
        found.append(
            row(f"retest, {case}: verdicts 'moved' that plain retraining confirms, of {len(moved)}", confirmed, "all",
                confirmed == len(moved), evidence=[v["confirmed"] for v in moved])
        )  # fmt: skip
    return found


def searched(file: Path, out: Path) -> None:
    """A whole study."""
    if not is_finished(out):
        vt.run(file, out=out, changes={"width": WIDTH}, **STUDY)


def experiment_file(place: Path, name: str, change: str) -> Path:
    """The digits with a little noise, and today's change of their inputs and labels."""
    text = DIGITS.read_text()
    data, split = "x, y = (digits.data / 16).astype(jnp.float32), digits.target\n", "    order = "
    assert data in text
    noisy = f"""{data}    noise = np.random.default_rng(1).standard_normal(x.shape).astype(np.float32)
    x = x + np.float32(0.1) * noise
    {change or "pass"}
"""
    path = place / f"digits_{name.replace('-', '_')}.py"
    path.write_text(text.replace(data, noisy, 1))
    assert split in text
    return path


def compared(file: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Two settings trained by a plain loop, as many seeds each, and what Welch's test says."""
    from scipy import stats

    a, b = known_errors(file, old), known_errors(file, new)
    gain = float(a.mean() - b.mean())
    p = float(stats.ttest_ind(a, b, equal_var=False, alternative="greater").pvalue) if dict(old) != dict(new) else 1.0
    return {"old": float(a.mean()), "new": float(b.mean()), "gain": gain, "p": p, "spread": float(a.std(ddof=1)),
            "moved": p < LEVEL}  # fmt: skip


def known_errors(file: Path, params: Mapping[str, Any]) -> np.ndarray:
    """`plain_errors`, kept on disk: the same setting is asked for again and again."""
    kept = Tally(file.with_suffix(".errors.json"))
    name = repr(sorted(params.items()))
    if name not in kept:
        kept[name] = [float(e) for e in plain_errors(file, params)]
        kept.keep()
    return np.array(kept[name])


def plain_errors(file: Path, params: Mapping[str, Any]) -> np.ndarray:
    """The validation error of SEEDS plain trainings: the digits' MLP written out, `scan`, and `vmap` over the seeds."""
    import jax
    import jax.numpy as jnp
    import optax

    experiment = load_experiment(file).experiment
    hp = type("Settings", (), {**params, "width": WIDTH})()
    data = experiment.loaded_data()
    (x, y), (xv, yv) = (tuple(jnp.asarray(a) for a in part) for part in (data.train, data.valid))
    batch, steps = experiment.batch_size, experiment.steps
    optimizer = experiment.optimizer(hp, steps)
    sizes = [(64, WIDTH), (WIDTH, WIDTH), (WIDTH, 10)]

    def logits(layers: Any, x: Any, key: Any) -> Any:
        x = jax.nn.relu(x @ layers[0][0] + layers[0][1])
        x = jax.nn.relu(x @ layers[1][0] + layers[1][1])
        if key is not None:
            x = jnp.where(jax.random.bernoulli(key, 1 - hp.dropout, x.shape), x / (1 - hp.dropout), 0)
        return x @ layers[2][0] + layers[2][1]

    def train(key: Any) -> Any:
        first, shuffle, drop = jax.random.split(key, 3)
        draw = jax.nn.initializers.lecun_normal()
        keys = jax.random.split(first, len(sizes))
        layers = [(draw(k, size), jnp.zeros(size[1])) for k, size in zip(keys, sizes, strict=True)]

        each = len(x) // batch
        epochs = jax.random.split(shuffle, -(-steps // each))
        orders = jax.vmap(lambda key: jax.random.permutation(key, len(x)))(epochs)

        def step(carry: Any, t: Any) -> Any:
            layers, moments = carry
            rows = jax.lax.dynamic_slice_in_dim(orders[t // each], t % each * batch, batch)

            def loss(layers: Any) -> Any:
                found = logits(layers, x[rows], jax.random.fold_in(drop, t))
                return optax.softmax_cross_entropy_with_integer_labels(found, y[rows]).mean()

            updates, moments = optimizer.update(jax.grad(loss)(layers), moments, layers)
            return (optax.apply_updates(layers, updates), moments), None

        (layers, _), _ = jax.lax.scan(step, (layers, optimizer.init(layers)), jnp.arange(steps))
        return (logits(layers, xv, None).argmax(-1) != yv).mean()

    return np.asarray(jax.jit(jax.vmap(train))(jax.random.split(jax.random.key(12345), SEEDS)))
