"""Kills, damage, full disks, bad numbers and two writers, against the real command.

    python benchmarks/reliability/reliability.py [--quick] [--json FILE] [--only PART ...]

Every row is "n of N": studies killed with SIGKILL at random moments, many of them within a save, and resumed; state
files with flipped bits and cut short; a size limit on files in place of a full disk; NaN and infinities forced in one
lane; two processes on one study; and what checkpoints cost. A row holds what was tried and what came of it.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from _processes import Command
from _report import finish, row

from vmaptune.errors import VmaptuneError
from vmaptune.store.ledger import LedgerReader, State

DIGITS = Path(__file__).parent.parent.parent / "experiments" / "digits_mlp.py"
STUDY = ["--trials", "48", "--rounds", "2", "--steps", "200", "--set", "width=ordinal([16, 32])", "--quiet",
         "--no-report", "--plan", "devices=1,tiles=1,lanes=8,every=10"]  # fmt: skip
PARTS = ("kills", "damage", "disk", "bad", "writers", "cost")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the tries; the bars stay")
    parser.add_argument("--json", metavar="FILE", help="write the figures as JSON")
    parser.add_argument("--only", nargs="*", choices=PARTS, default=PARTS, help="which parts (default all)")
    parser.add_argument("--seconds", type=float, default=1e9, help="begin no further try after so long")
    args = parser.parse_args()
    until = time.monotonic() + args.seconds
    share = 10 if args.quick else 1
    rows = []
    with tempfile.TemporaryDirectory() as folder, Command(Path(folder) / "cache") as command:
        place = Path(folder)
        reference = place / "reference"
        for _ in range(2):  # the second finds its programs compiled
            shutil.rmtree(reference, ignore_errors=True)
            whole = command.run(["run", str(DIGITS), "--out", str(reference), *STUDY])
            assert whole.code == 0, whole.errors
        if "kills" in args.only:
            rows += kills(command, place, reference, whole.seconds, 200 // share, until)
        if "damage" in args.only:
            rows += damage(command, place, reference, whole.seconds, 100 // share)
        if "disk" in args.only:
            rows += full_disk(command, place, reference, 20 // share, until)
        if "writers" in args.only:
            rows += two_writers(command, place, 20 // share, until)
        if "cost" in args.only:
            rows += cost(command, place)
    if "bad" in args.only:
        rows += bad_numbers(50 // share)
    return finish("reliability", rows, args.json)


def digest(study: Path) -> str:
    """Of the table, the curves and the weights."""
    found = hashlib.sha256((study / "trials.csv").read_bytes())
    with LedgerReader.open(study) as reader:
        found.update(repr(list(reader.curves())).encode())
    for path in sorted((study / "best").iterdir()):
        found.update(path.name.encode() + path.read_bytes())
    return found.hexdigest()


def is_finished(study: Path) -> bool:
    """Whether a study is there and came to its end."""
    if not (study / "study.db").exists():
        return False
    with LedgerReader.open(study) as reader:
        return reader.finished()


def run(study: Path, *more: str) -> list[str]:
    return ["run", str(DIGITS), "--out", str(study), *STUDY, *more]


def kills(command: Command, place: Path, reference: Path, seconds: float, wanted: int, until: float) -> list[dict]:
    """Studies killed again and again until they finish. Every other one saves after each call, so that most kills
    fall into a save."""
    draw = random.Random(0)
    killed = same = finished = lost = twice = running = 0
    wrong: list[str] = []
    while killed < wanted and time.monotonic() < until:
        study = place / "killed"
        shutil.rmtree(study, ignore_errors=True)
        arguments = run(study, "--save-every", "0" if finished % 2 else "0.5")
        ended = command.run(arguments, kill_after=draw.uniform(0.15, 0.8) * seconds)
        while ended.code is None:
            killed += 1
            if is_finished(study):  # the kill fell behind the end
                break
            over = killed >= wanted or time.monotonic() > until
            ended = command.run(arguments, kill_after=None if over else draw.uniform(0.15, 0.8) * seconds)
        finished += 1
        if ended.code not in (0, None):
            wrong.append(ended.errors[-300:])
            continue
        with LedgerReader.open(study) as reader, LedgerReader.open(reference) as true:
            ids, expected = [t.trial for t in reader.trials()], [t.trial for t in true.trials()]
            lost += len(set(expected) - set(ids))
            twice += len(ids) - len(set(ids))
            running += reader.counts()[State.RUNNING]
        same += digest(study) == digest(reference)
    return [
        row(f"SIGKILLs at random moments, of {wanted}", killed, f"{wanted}", killed >= wanted),
        row(f"killed studies with identical table, curves and weights, of {finished}", same, "all",
            same == finished > 0, errors=wrong[:3]),
        row("trials lost", lost, "0", lost == 0),
        row("trials twice", twice, "0", twice == 0),
        row("trials left running", running, "0", running == 0),
    ]  # fmt: skip


def damage(command: Command, place: Path, reference: Path, seconds: float, each: int) -> list[dict]:
    """State files of a finished and of a killed study: cut at random lengths, and with single bits flipped."""
    draw = random.Random(1)
    killed = place / "half"
    for part in (0.85, 0.75, 0.65, 0.55, 0.45, 0.35, 0.25):
        shutil.rmtree(killed, ignore_errors=True)
        command.run(run(killed, "--save-every", "0"), kill_after=part * seconds)
        if (killed / "study.db-wal").exists() and list((killed / "checkpoints").glob("*.ckpt")):
            break
    else:
        raise SystemExit("no kill fell between a study's first checkpoint and its end; run this again")
    rows = []
    for study, names in (
        (reference, ["study.db", "best/best.weights"]),
        (killed, ["study.db", "study.db-wal", *[f"checkpoints/{p.name}" for p in (killed / "checkpoints").glob("*")]]),
    ):
        true = readable(study)
        for name in names:
            whole = (study / name).read_bytes()
            counts = {"same": 0, "error": 0, "earlier": 0, "CHANGED": 0}
            for i in range(2 * each):
                copy = place / "damaged"
                shutil.rmtree(copy, ignore_errors=True)
                shutil.copytree(study, copy)
                damaged = bytearray(whole)
                if i % 2:
                    damaged[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
                else:
                    damaged = damaged[: draw.randrange(len(whole))]
                (copy / name).write_bytes(damaged)
                counts[judge(copy, name, true)] += 1
            good = 2 * each - counts["CHANGED"]
            kind = "finished" if study == reference else "killed"
            what = "checkpoint" if name.startswith("checkpoints") else name
            rows.append(
                row(f"{what} of a {kind} study, cut or flipped: recovered or refused by name, of {2 * each}", good,
                    "all", good == 2 * each, **counts)
            )  # fmt: skip
    return rows


def readable(study: Path) -> tuple:
    """All numbers of a study: trials, curve points, the winner's weights."""
    from vmaptune.store.weights import load_weights

    with LedgerReader.open(study) as reader:
        trials = {repr((t.trial, t.state, t.seed, t.value, dict(t.params))) for t in reader.trials()}
        points = {repr(point) for _, curve in reader.curves() for point in curve}
        rounds = repr([(r.round, r.space) for r in reader.rounds()])
    weights = study / "best" / "best.weights"
    arrays = {k: v.tobytes() for k, v in load_weights(weights).items()} if weights.exists() else {}
    return trials, points, rounds, arrays


def judge(study: Path, name: str, true: tuple) -> str:
    """same, error, earlier (whole transactions are missing at the end), or CHANGED."""
    if name.startswith("checkpoints"):
        from vmaptune.store.checkpoints import Checkpoints

        said: list[str] = []
        Checkpoints(study).newest(2**62, said.append)
        return "error" if any(Path(name).name in text for text in said) else "CHANGED"
    try:
        found = readable(study)
    except VmaptuneError:
        return "error"
    if found == true:
        return "same"
    if name.endswith("-wal") and found[1] <= true[1] and true[2].startswith(found[2][:-1]):
        return "earlier"
    return "CHANGED"


def full_disk(command: Command, place: Path, reference: Path, tries: int, until: float) -> list[dict]:
    """No file may grow past a limit, which lies somewhere below the size that the ledger comes to."""
    draw = random.Random(2)
    size = (reference / "study.db").stat().st_size
    clean = same = 0
    errors = []
    for _ in range(tries):
        if time.monotonic() > until:
            break
        study = place / "full"
        shutil.rmtree(study, ignore_errors=True)
        ended = command.run(run(study, "--save-every", "0.5"), file_limit=draw.randrange(size // 8, size))
        # a log that is written to again and again may never reach the limit: then the study finishes, which is right
        clean += ended.code in (0, 1) and "Traceback" not in ended.errors
        if ended.code not in (0, 1) or "Traceback" in ended.errors:
            errors.append(ended.errors[-400:])
        if ended.code != 0:
            ended = command.run(run(study))
        same += ended.code == 0 and digest(study) == digest(reference)
    return [
        row(f"full disk: a clean exit, of {tries}", clean, f"{tries}", clean == tries, errors=errors[:3]),
        row(f"full disk: the same bits once there is space, of {tries}", same, f"{tries}", same == tries),
    ]


def two_writers(command: Command, place: Path, tries: int, until: float) -> list[dict]:
    """A second process on a study that is being written, at a random moment."""
    draw = random.Random(3)
    refused = unharmed = 0
    first_hash = None
    with Command(place / "cache2") as second:
        for _ in range(tries):
            if time.monotonic() > until:
                break
            study = place / "two"
            shutil.rmtree(study, ignore_errors=True)
            pid, started = command.start(run(study))
            while not (study / "writer.json").exists():
                time.sleep(0.01)
            time.sleep(draw.uniform(0, 0.3))
            other = second.run(run(study))
            refused += other.code == 2 and f"process {pid} on" in other.errors
            one = command.end(started)
            now = digest(study) if one.code == 0 else None
            first_hash = first_hash or now
            unharmed += now is not None and now == first_hash
    return [
        row(f"a second writer is refused at once and told who holds the study, of {tries}", refused, f"{tries}",
            refused == tries),
        row(f"the first writer's study is unharmed, of {tries}", unharmed, f"{tries}", unharmed == tries),
    ]  # fmt: skip


def cost(command: Command, place: Path) -> list[dict]:
    """What the training waits for a checkpoint, in a minute of training at the default setting."""
    import numpy as np

    from vmaptune.store.checkpoints import Checkpoints, Snapshot

    study = place / "asked"
    pid, started = command.start(run(study, "--save-every", "0"))
    while not list((study / "checkpoints").glob("*.ckpt")):
        time.sleep(0.02)
    command.kill(pid, signal.SIGTERM)
    command.end(started)
    (snapshot, *_) = Checkpoints(study).newest(2**62, print)
    times = []
    store = Checkpoints(place / "timed")
    for i in range(10):
        begun = time.perf_counter()
        arrays = {name: np.array(array) for name, array in snapshot.arrays.items()}
        store.save(Snapshot(i, snapshot.plain, arrays))
        store.wait()  # all of it, as if nothing could be done beside it
        times.append(time.perf_counter() - begun)
    store.close()
    share = max(times) / 60
    size = sum(array.nbytes for array in snapshot.arrays.values())
    return [
        row("checkpoint's share of a minute of training (copy, hash, write and sync, the slowest of 10)", share,
            "at most 0.03", share <= 0.03, bytes=size),
    ]  # fmt: skip


def bad_numbers(draws: int) -> list[dict]:
    """NaN, +inf and -inf in lane i at step t: no other lane's bit changes, and the bad one is stopped."""
    import jax
    import jax.numpy as jnp

    from vmaptune.engine.lanes import Job, Lanes
    from vmaptune.engine.plan import Plan
    from vmaptune.engine.program import LaneFunctions, Program
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

    clean, _ = train(-1.0, 0.0, 0)
    draw = random.Random(4)
    equal = never = 0
    for _ in range(draws):
        lane, when, bad = (
            draw.randrange(8),
            draw.randrange(1, 21),
            draw.choice([float("nan"), float("inf"), -float("inf")]),
        )
        points, wrong = train(float(when), bad, lane)
        equal += all(points[i] == clean[i] for i in range(8) if i != lane)
        scored = [Scored(i, {}, points[i][-1][2] if i not in wrong else float("nan")) for i in range(8)]
        never += lane in wrong and wrong[lane] == when and best(scored, 1)[0].trial != lane
    return [
        row(f"NaN and infinities in one lane: the others bitwise equal, of {draws}", equal, f"{draws}", equal == draws),
        row(f"the bad lane is told with its step and never best, of {draws}", never, f"{draws}", never == draws),
    ]


if __name__ == "__main__":
    sys.exit(main())
