"""`retest` on the digits: the data of then, two classes' labels swapped, inputs times 10, and 10 times the noise.

Adam's updates hardly depend on the scale of its gradients, so inputs times 10 are tried with SGD and momentum too.

Whether a verdict is right is found without vmaptune's engine: settings are trained again by a plain loop, each on the
same many seeds, and compared by Welch's test.

"moved" names two settings, and is right where the new one is better at the 1 % level.

"still best" names the old one, and says that none is better by three quarters of one training's spread. It is wrong
where some setting is better by as much, at the 1 % level: the rival that the retest itself chose, or the best setting
of a study that was begun afresh on today's data (of the study of then, where the data are the same). A rival that is
better by less may be missed; by simulation one that is better by half a spread is found in 82 % of retests, by one
spread in all.

Where a retest says "unclear, run again with more repeats", that is done, once; "unclear" after that is not right.
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
from vmaptune.search.verdict import MARGIN

# today's change of the data, by the experiment of then
CASES = {
    "the same data": ("adamw", ""),
    "labels of two classes swapped": ("adamw", "y = np.where(y == 3, 8, np.where(y == 8, 3, y))"),
    "inputs times 10": ("adamw", "x = 10 * x"),
    "10 times the noise": ("adamw", "x = x + np.float32(0.9) * noise"),
    "SGD, the same data": ("sgd", ""),
    "SGD, inputs times 10": ("sgd", "x = 10 * x"),
}
SCHEDULE = "vt.schedules.cosine(hp.learning_rate, steps)"
ADAMW = f"optax.adamw({SCHEDULE}, b1=hp.beta1, weight_decay=hp.weight_decay)"
SGD = f"optax.chain(optax.add_decayed_weights(hp.weight_decay), optax.sgd({SCHEDULE}, momentum=hp.beta1))"
STUDY: dict[str, Any] = {"trials": 192, "rounds": 3, "report": False}
SEEDS = 256  # of the plain loop, for each setting
LEVEL = 0.01
WIDTH = 32
MORE = "384"  # repeats of a retest that was unclear with 192


def retests(bench: Bench, tries: int) -> None:
    """So many retests of one old study in each case."""
    tally = bench.tally("retest")
    for case, (optimizer, change) in CASES.items():
        old = bench.place / f"retest-then-{optimizer}"
        searched(experiment_file(bench.place, f"then-{optimizer}", optimizer, ""), old)
        name = case.replace(" ", "-").replace(",", "")
        file = experiment_file(bench.place, name, optimizer, change)
        fresh = old if not change else bench.place / f"retest-{name}-fresh"
        searched(file, fresh)
        new = dict(vt.load(fresh).best_params)
        if f"{case}: then" not in tally:  # what became of the winner of then
            tally[f"{case}: then"] = compared(file, dict(vt.load(old).best_params), new)
            tally.keep()
            print(case, tally[f"{case}: then"], flush=True)
        for i in [*range(tries), *range(tries)]:
            if bench.over:
                return
            if i >= len(tally.get(case, [])):
                tally.note(case, [asked(bench, old, file, new, f"{name}-{i}", 1000 + i)])
            elif len(tally[case][i]) == 1 and tally[case][i][0]["verdict"] == "unclear":  # it says: with more repeats
                again = asked(bench, old, file, new, f"{name}-{i}-more", 2000 + i, "--repeats", MORE)
                tally[case][i].append(again)
            tally.keep()
            print(case, tally[case][i], flush=True)


def asked(
    bench: Bench, old: Path, file: Path, new: Mapping[str, Any], name: str, seed: int, *more: str
) -> dict[str, Any]:
    """One retest, and what plain retraining says of the two settings that it names, and of the old one and `new`."""
    out = bench.place / f"retest-{name}"
    if not is_finished(out):
        ended = bench.command.run(
            ["retest", str(old), "--exp", str(file), "--out", str(out), "--seed", str(seed), "--quiet", "--no-report",
             *more]
        )  # fmt: skip
        assert ended.code == 0, ended.errors
    found = vt.load(out).result["retest"]
    named = found["old"]["params"]
    return {name: found[name] for name in ("verdict", "gain", "p", "repeats")} | {
        "its_rival": compared(file, named, found["new"]["params"]),
        "new_study": compared(file, named, new),
    }


def is_right(said: Mapping[str, Any]) -> bool:
    """Whether plain retraining bears a verdict out."""
    if said["verdict"] == "moved":
        return said["its_rival"]["p"] < LEVEL
    missed = [c for c in (said["its_rival"], said["new_study"]) if c["p"] < LEVEL and c["gain"] >= MARGIN * c["spread"]]
    return said["verdict"] == "still best" and not missed


def rows(bench: Bench, tries: int) -> list[dict]:
    tally = bench.tally("retest")
    found = []
    for case, (_, change) in CASES.items():
        answers = tally.get(case, [])
        if not answers:
            continue
        said = [each[-1] for each in answers]
        expected = [v["verdict"] == "still best" for v in said] if not change else [True] * len(said)
        right = sum(is_right(v) and e for v, e in zip(said, expected, strict=True))
        found.append(
            row(f"retest, {case}: right by plain retraining{'' if change else ', still best'}, of {tries}",
                right, f"{tries}", right >= tries and len(said) >= tries,
                moved=sum(v["verdict"] == "moved" for v in said),
                still_best=sum(v["verdict"] == "still best" for v in said),
                winner_of_then=tally[f"{case}: then"], verdicts=answers)
        )  # fmt: skip
    return found


def searched(file: Path, out: Path) -> None:
    """A whole study."""
    if not is_finished(out):
        vt.run(file, out=out, changes={"width": WIDTH}, **STUDY)


def experiment_file(place: Path, name: str, optimizer: str, change: str) -> Path:
    """The digits with a little noise, trained by AdamW or SGD, and today's change of their inputs and labels."""
    text = DIGITS.read_text()
    assert ADAMW in text
    if optimizer == "sgd":
        text = text.replace(ADAMW, SGD).replace("vt.loguniform(1e-4, 1.0)", "vt.loguniform(1e-5, 10.0)")
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
    spread = float(min(a.std(ddof=1), b.std(ddof=1)))  # of one training over seeds, as retest counts it
    return {"old": float(a.mean()), "new": float(b.mean()), "gain": gain, "p": p, "spread": spread}


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
