"""The fuzzer: cases are drawn alike, a wrong number is found, a right one passes, and a process that dies is told."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import fuzz
from fuzzing import _processes
from fuzzing._case import Case, spec_of
from fuzzing._judge import Loops, judged, wrong_numbers
from fuzzing._known import BASE, KNOWN
from fuzzing._layers import LAYERS
from fuzzing._package import Trained
from fuzzing._training import LOSSES, OPTIMIZERS

SMALL = BASE | {"batch": 3, "examples": 7, "valid": 4, "input": {"kind": "normal", "shape": [3]}, "outputs": 2,
                "layers": [["dense", {"units": 4, "form": "x@w", "bias": True}, None],
                           ["activation", {"kind": "tanh"}, None]],
                "plan": {"devices": 1, "lanes": 2, "tiles": 1, "every": 2}, "trials": 2, "steps": 3}  # fmt: skip


def test_the_same_seed_draws_the_same_case_and_the_case_is_plain_json():
    drawn = [spec_of(seed) for seed in range(12)]
    assert [spec_of(seed) for seed in range(12)] == drawn == json.loads(json.dumps(drawn))
    assert len({json.dumps({**spec, "seed": 0}) for spec in drawn}) == 12
    for spec in drawn:
        assert spec["mode"] == _processes.mode_of({"seed": spec["seed"]})
        assert {name for name, *_ in spec["layers"]} <= LAYERS.keys()
        assert spec["loss"] in LOSSES
        assert spec["optimizer"] in OPTIMIZERS
        assert spec["batch"] <= spec["examples"]


@pytest.mark.parametrize("name", KNOWN)
def test_a_known_case_has_a_model(name):
    case = Case(KNOWN[name])
    out = jax.eval_shape(lambda key, x: case.outputs(case.model(key), x, key, True), jax.random.key(0), case.data[0][0])
    assert out.shape == (len(case.data[0][0]), KNOWN[name]["outputs"])


def test_a_number_is_wrong_ten_times_further_from_float64_than_float32_is():
    exact, plain = {2: {"loss": 1.0, "w0": 5.0}}, [{2: {"loss": 1.01, "w0": 5.0}}, {2: {"loss": 0.999, "w0": 5.0}}]

    def wrong(**found: float) -> list[str]:
        return [each["name"] for each in wrong_numbers({2: found}, exact, plain, 1e-6, {"w0": 100.0})]

    assert wrong(loss=1.09, w0=5.0) == []
    assert wrong(loss=1.11, w0=5.0) == ["loss"]
    assert wrong(loss=1.0, w0=5.0 + 9e-5) == []  # rounding of terms as large as 100
    assert wrong(loss=1.0, w0=5.0 + 11e-5) == ["w0"]
    assert wrong(loss=np.nan, w0=5.0) == ["loss"]
    assert wrong(loss=1.0) == ["w0"]


def test_what_plain_loops_do_not_agree_to_be_finite_is_not_compared():
    bad = {"training loss": np.nan, "loss": 1.0}
    good = {"training loss": 2.0, "loss": 1.0}
    away = {"training loss": 9.0, "loss": 1.0}
    assert wrong_numbers({2: away}, {2: good}, [{2: bad}], 1e-6, {}) == []
    assert wrong_numbers({2: bad}, {2: bad}, [{2: bad}], 1e-6, {}) == []
    first, later = {1: away, 2: away}, {1: good, 2: bad}
    assert [w["step"] for w in wrong_numbers(first, later, [later], 1e-6, {})] == [1]
    assert [w["name"] for w in wrong_numbers({2: bad}, {2: good}, [{2: good}], 1e-6, {})] == ["training loss"]


def test_a_right_study_passes_and_a_spoilt_number_of_it_does_not(monkeypatch):
    kept: list[tuple[Loops, Trained]] = []
    judge = Loops.judge
    monkeypatch.setattr(Loops, "judge", lambda loops, trained: kept.append((loops, trained)) or judge(loops, trained))
    found = judged(Case(SMALL))
    assert found["verdict"] == "right", found
    assert len(kept) >= 2
    loops, trained = kept[0]
    for name in trained.points[2]:
        points = {step: dict(numbers) for step, numbers in trained.points.items()}
        points[2][name] *= 1 + 1e-3
        assert name in [each["name"] for each in judge(loops, trained._replace(points=points))]
    other = kept[1][1]
    assert judge(loops, other._replace(rate=other.rate * 1.01))  # a lane that got another lane's learning rate


def test_a_rewrite_that_changes_the_model_is_found(monkeypatch):
    from vmaptune.engine import functions

    def spoilt(jaxpr, **options):
        tanh = jax.lax.tanh_p
        eqns = [e.replace(primitive=jax.lax.sin_p) if e.primitive is tanh else e for e in jaxpr.eqns]
        return jaxpr.replace(eqns=eqns)

    monkeypatch.setattr(functions, "fit_for_cpu", spoilt)
    found = judged(Case(SMALL))
    # by the fuzzer, or before it by the package's own check of its programs
    assert found["verdict"] in ("wrong", "caught"), found


def script(tmp_path: Path, monkeypatch, answers: str) -> None:
    """A process that answers so instead of training."""
    file = tmp_path / "child.py"
    file.write_text(f"import json, os, sys\nfor line in sys.stdin:\n    request = json.loads(line)\n    {answers}\n")
    monkeypatch.setattr(_processes, "SCRIPT", file)


def run(monkeypatch, capsys, *arguments: str) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["fuzz.py", "--jobs", "1", *arguments])
    code = fuzz.main()
    return code, capsys.readouterr().out


def test_a_process_that_dies_is_a_case_that_failed(tmp_path, monkeypatch, capsys):
    said = 'print(json.dumps({"stage": "package"}), flush=True); sys.stderr.write("Check failed: it\\n"); os.abort()'
    script(tmp_path, monkeypatch, said)
    code, out = run(monkeypatch, capsys, "--only", "5", "--json", str(tmp_path / "s.json"), "--as-found")
    assert code == 1
    assert "FAILED 5: died (package): SIGABRT: Check failed: it" in out
    assert "python benchmarks/fuzz.py --only 5" in out
    summary = json.loads((tmp_path / "s.json").read_text())
    assert (summary["cases"], summary["verdicts"]) == (1, {"died": 1})
    assert {"jax", "python", "numpy"} <= summary["versions"].keys()


def test_a_case_on_which_plain_jax_dies_is_none(tmp_path, monkeypatch, capsys):
    script(tmp_path, monkeypatch, 'print(json.dumps({"stage": "plain"}), flush=True); os.abort()')
    code, out = run(monkeypatch, capsys, "--only", "5")
    assert (code, out.splitlines()[-1].split(":")[0]) == (0, "1 no case")


def test_every_case_is_asked_for_once_and_a_wrong_one_is_told(tmp_path, monkeypatch, capsys):
    wrong = '{"name": "loss", "trial": 1, "step": 2, "found": 1.5, "float64": 1.0, "float32": 1.0, "allowed": 1e-5}'
    verdict = f'"wrong" if request["seed"] == 700004 else "right", "wrong": [{wrong}], "spec": None'
    script(tmp_path, monkeypatch, f'print(json.dumps({{"verdict": {verdict}}}), flush=True)')
    code, out = run(monkeypatch, capsys, "--seed", "7", "--cases", "90", "--as-found")
    assert code == 1
    assert out.splitlines()[0] == "--seed 7"
    assert out.count("FAILED") == 1
    assert "FAILED 700004: wrong: loss of trial 1 is 1.5 at step 2, in float64 1" in out
    assert "89 right, 1 wrong: 90 cases" in out


def test_a_case_that_fails_is_made_smaller_as_long_as_it_fails_alike(tmp_path, monkeypatch, capsys):
    spec = SMALL | {"layers": [*SMALL["layers"], ["activation", {"kind": "relu"}, "jit"]], "order": "shared"}
    wrong = '{"name": "loss", "trial": 1, "step": 2, "found": 1.5, "float64": 1.0, "float32": 1.0, "allowed": 1e-5}'
    fails = 'any(name == "dense" for name, *_ in request["spec"]["layers"])'
    verdict = f'{{"stage": "judge", "verdict": "wrong" if {fails} else "right", "wrong": [{wrong}]}}'
    script(tmp_path, monkeypatch, f"print(json.dumps({verdict}), flush=True)")
    code, out = run(monkeypatch, capsys, "--spec", json.dumps(spec), "--json", str(tmp_path / "s.json"))
    assert code == 1
    assert "smaller than case of --spec: " in out
    (failure,) = json.loads((tmp_path / "s.json").read_text())["failures"]
    assert failure["smaller"]["layers"] == SMALL["layers"][:1]
    assert (failure["smaller"]["order"], failure["smaller"]["optimizer"]) == ("own", "sgd")


def test_a_mistake_of_the_fuzzer_itself_is_no_case_that_passed(tmp_path, monkeypatch, capsys):
    script(tmp_path, monkeypatch, 'print("{}" + json.dumps(request), flush=True)')
    with pytest.raises(json.JSONDecodeError):
        run(monkeypatch, capsys, "--only", "5")
