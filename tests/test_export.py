"""Each export is read back by the library that is to receive it."""

from __future__ import annotations

import csv
import json
import math
import sys

import pytest
from ledgers import SPACE, STEPS, TRIALS, write_study

from vmaptune.cli import main
from vmaptune.errors import InputError
from vmaptune.store.states import State
from vmaptune.view.export import FORMATS, export


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return write_study(tmp_path_factory.mktemp("export") / "study")


def test_csv_has_every_trial_exactly(study):
    path = export(study, "csv")
    assert path == study / "export" / "trials.csv"
    with path.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert [int(r["trial"]) for r in rows] == list(TRIALS)
    for row, (values, state, reason, curve) in zip(rows, TRIALS.values(), strict=True):
        assert tuple(float(row[f"params.{n}"]) for n in SPACE) == values
        assert (row["state"], row["reason"]) == (state, reason or "")
        assert row["value"] == ("" if state == "RUNNING" else repr(curve[-1]))
    assert [r["of"] for r in rows] == ["", "", "", "", "", "1"]
    assert [r["kind"] for r in rows] == ["search"] * 5 + ["confirm"]


def test_a_metric_named_as_a_formula_computes_nothing(tmp_path):
    study = write_study(tmp_path / "s", objective="=1+1")
    for text in (export(study, "csv").read_text(), *(p.read_text() for p in export(study, "wandb-csv").iterdir())):
        for line in csv.reader(text.splitlines()):
            assert not any(cell.startswith(("=", "+", "@")) for cell in line)


def test_json_is_strict_and_whole(study):
    def refuse(word):
        raise ValueError(word)

    whole = json.loads(export(study, "json").read_text(), parse_constant=refuse)
    assert [t["trial"] for t in whole["trials"]] == list(TRIALS)
    assert [[p["value"] for p in t["curve"]] for t in whole["trials"]] == [
        [v if math.isfinite(v) else None for v in curve] for *_, curve in TRIALS.values()
    ]
    assert whole["decisions"][0]["data"] == {"slice": [1, 0]}
    assert whole["meta"]["objective"] == "error"


def test_parquet_is_read_by_pyarrow_and_pandas(study):
    from pyarrow import parquet

    table = parquet.read_table(export(study, "parquet"))
    assert table.schema.metadata[b"objective"] == b"error"
    rows = table.to_pylist()
    assert [r["curve.step"] for r in rows] == [list(STEPS[: len(curve)]) for *_, curve in TRIALS.values()]
    assert [r["params.momentum"] for r in rows] == [values[1] for values, *_ in TRIALS.values()]
    assert [r["params.width"] for r in rows] == [values[3] for values, *_ in TRIALS.values()]
    assert table.to_pandas()["value"].min() == 0.125


def test_optuna_loads_plots_and_samples_from_it(study):
    import optuna

    path = export(study, "optuna")
    loaded = optuna.load_study(study_name="by-hand", storage=f"sqlite:///{path}")
    assert loaded.direction.name == "MINIMIZE"
    assert loaded.metric_names == ["error"]
    states = {"COMPLETE": "COMPLETE", "STOPPED": "PRUNED", "INFEASIBLE": "FAIL", "RUNNING": "RUNNING"}
    for trial, (values, state, reason, curve) in zip(loaded.trials, TRIALS.values(), strict=True):
        assert trial.state.name == states[state]
        assert trial.user_attrs.get("reason") == reason
        assert list(trial.intermediate_values) == list(STEPS[: len(curve)])
        assert [v for v in trial.intermediate_values.values() if not math.isnan(v)] == [
            v for v in curve if not math.isnan(v)
        ]
        learning_rate, momentum, decay, width = values
        wanted = {
            "learning_rate": learning_rate,
            "1-momentum": 1 - momentum,
            "decay-is-zero": decay == 0,
            "width": width,
        }
        assert trial.params == wanted | ({"decay": decay} if decay else {})
        assert trial.value == (curve[-1] if state in ("COMPLETE", "STOPPED") else None)
    assert loaded.best_trial.number == 1
    assert loaded.trials[5].user_attrs["confirms"] == 1
    found = loaded.trials[1].distributions
    assert found["1-momentum"] == optuna.distributions.FloatDistribution(1 - 0.999, 0.5, log=True)
    assert found["learning_rate"] == optuna.distributions.FloatDistribution(1e-4, 1.0, log=True)
    assert found["width"] == optuna.distributions.CategoricalDistribution((16, 32))
    loaded.sampler = optuna.samplers.TPESampler(seed=0)
    loaded.ask(found)  # a sampler of theirs goes on from it


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::optuna.exceptions.ExperimentalWarning")
def test_optunas_own_figures_open_it(study):
    """Every plot of `optuna.visualization` that a study of one objective has, with our points in it."""
    import optuna
    from optuna import visualization as v

    loaded = optuna.load_study(study_name="by-hand", storage=f"sqlite:///{export(study, 'optuna')}")
    shown = ["learning_rate", "1-momentum"]
    figures = {
        "history": v.plot_optimization_history(loaded), "curves": v.plot_intermediate_values(loaded),
        "slice": v.plot_slice(loaded, shown), "parallel": v.plot_parallel_coordinate(loaded, shown),
        "contour": v.plot_contour(loaded, shown), "rank": v.plot_rank(loaded, shown), "edf": v.plot_edf(loaded),
        "timeline": v.plot_timeline(loaded),
        "importance": v.plot_param_importances(
            loaded, evaluator=optuna.importance.PedAnovaImportanceEvaluator(), params=shown
        ),
    }  # fmt: skip
    assert {name for name, figure in figures.items() if not figure.data} == set()
    complete = [t for t, (_, state, _, _) in TRIALS.items() if state == State.COMPLETE]
    assert list(figures["history"].data[0].x) == complete
    assert list(figures["history"].data[0].y) == [TRIALS[t][3][-1] for t in complete]
    drawn = {name: list(trace.y) for trace in figures["curves"].data if (name := trace.name) is not None}
    assert drawn["Trial1"] == list(TRIALS[1][3])
    panel = next(trace for trace in figures["slice"].data if trace.xaxis in (None, "x"))
    assert sorted(panel.x) in (sorted(1 - TRIALS[t][0][1] for t in complete), sorted(TRIALS[t][0][0] for t in complete))


def test_optuna_dashboard_serves_it(study):
    """Over HTTP, as a browser asks for it."""
    import threading
    from urllib.request import urlopen
    from wsgiref.simple_server import WSGIRequestHandler, make_server

    import optuna
    from optuna_dashboard import wsgi

    class Silent(WSGIRequestHandler):
        def log_message(self, *_):
            pass

    app = wsgi(optuna.storages.RDBStorage(f"sqlite:///{export(study, 'optuna')}"))
    with make_server("127.0.0.1", 0, app, handler_class=Silent) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            here = f"http://127.0.0.1:{server.server_port}"
            page = urlopen(f"{here}/dashboard", timeout=20).read().decode()
            found = json.load(urlopen(f"{here}/api/studies", timeout=20))["study_summaries"]
            assert [one["study_name"] for one in found] == ["by-hand"]
            detail = json.load(urlopen(f"{here}/api/studies/{found[0]['study_id']}", timeout=20))
        finally:
            server.shutdown()
            thread.join()
    assert "<html" in page.lower()
    states = {"COMPLETE": "Complete", "STOPPED": "Pruned", "INFEASIBLE": "Fail", "RUNNING": "Running"}
    assert [t["state"].lower() for t in detail["trials"]] == [
        states[str(state)].lower() for _, state, _, _ in TRIALS.values()
    ]
    second = detail["trials"][1]
    assert [v["value"] for v in second["intermediate_values"]] == list(TRIALS[1][3])
    assert {p["name"] for p in second["params"]} >= {"learning_rate", "1-momentum"}


def test_optuna_takes_settings_that_left_the_first_space_and_every_kind_of_list(tmp_path):
    import optuna

    from vmaptune import space as s
    from vmaptune.store.ledger import Ledger, TrialResult, TrialRow
    from vmaptune.store.states import State

    space = s.Space(
        {"a": s.loguniform(0.1, 1.0), "b": s.choice(["x", None, True, (1, 2)]),
         "c": s.randint(2, 10, step=4, or_zero=0.5),
         "d": s.lograndint(1, 8), "e": s.uniform(0.0, 1.0, step=0.25), "f": s.reverseloguniform(0.9, 0.99)}
    )  # fmt: skip
    params = [
        {"a": 0.01, "b": (1, 2), "c": 0, "d": 3, "e": 0.75, "f": 0.999},
        {"a": 7.0, "b": None, "c": 6, "d": 16, "e": 0.0, "f": 0.9},
    ]
    meta = {"name": "wide", "space": space.to_json(), "objective": "y", "direction": "maximize", "state": "finished"}
    with Ledger.create(tmp_path / "s", meta) as ledger:
        ledger.add_round(0, "search", None, 2)
        ledger.add_trials(TrialRow(i, 0, 0, State.RUNNING, None, 0, 0, None, p) for i, p in enumerate(params))
        ledger.finish_trials(TrialResult(i, State.COMPLETE, None, 1, float(i)) for i in range(2))
    loaded = optuna.load_study(study_name=None, storage=f"sqlite:///{export(tmp_path / 's', 'optuna')}")
    assert loaded.best_trial.params == {
        "a": 7.0, "b": None, "c": 6, "c-is-zero": False, "d": 16, "e": 0.0, "1-f": pytest.approx(0.1),
    }  # fmt: skip
    assert loaded.trials[0].params["b"] == "(1, 2)"
    assert loaded.trials[0].params["c-is-zero"] is True


def test_tensorboard_reads_scalars_and_hparams(study):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import metadata

    path = export(study, "tensorboard")
    for number, (values, state, _, curve) in TRIALS.items():
        events = EventAccumulator(str(path / f"trial-{number:05d}")).Reload()
        scalars = events.Scalars("error")
        assert [s.step for s in scalars] == list(STEPS[: len(curve)])
        assert [s.value for s in scalars] == pytest.approx(curve, nan_ok=True)
        assert events.Scalars("train_loss")[0].value == pytest.approx(2 * curve[0])
        content = events.summary_metadata[metadata.SESSION_START_INFO_TAG].plugin_data.content
        setting = metadata.parse_session_start_info_plugin_data(content).hparams
        assert setting["learning_rate"].number_value == values[0]
        assert setting["1-momentum"].number_value == pytest.approx(1 - values[1])
        ended = metadata.SESSION_END_INFO_TAG in events.summary_metadata
        assert ended == (state != "RUNNING")
    root = EventAccumulator(str(path)).Reload()
    content = root.summary_metadata[metadata.EXPERIMENT_TAG].plugin_data.content
    experiment = metadata.parse_experiment_plugin_data(content)
    domains = {info.name: info for info in experiment.hparam_infos}
    assert domains["1-momentum"].domain_interval.min_value == pytest.approx(0.001)
    assert domains["decay"].domain_interval.min_value == 0
    assert [v.number_value for v in domains["width"].domain_discrete.values] == [16, 32]
    assert [m.name.tag for m in experiment.metric_infos] == ["error", "loss"]


def test_mlflow_searches_the_runs(study):
    import mlflow

    path = export(study, "mlflow")
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{path}")
    experiment = client.get_experiment_by_name("by-hand")
    runs = client.search_runs([experiment.experiment_id], order_by=["metrics.error ASC"])
    assert len(runs) == len(TRIALS)
    best = next(r for r in runs if r.info.run_name == "trial-1")
    assert best.data.params["learning_rate"] == "0.1"
    assert [(m.step, m.value) for m in client.get_metric_history(best.info.run_id, "error")] == [
        (10, 0.8), (20, 0.4), (30, 0.125),
    ]  # fmt: skip
    status = {r.info.run_name: r.info.status for r in runs}
    assert status["trial-3"] == "FAILED"
    assert status["trial-4"] == "RUNNING"


def test_wandb_tables_have_a_row_a_run_and_a_row_a_step(study):
    import pandas

    path = export(study, "wandb-csv")
    runs, history = pandas.read_csv(path / "runs.csv"), pandas.read_csv(path / "history.csv")
    assert list(runs["Name"]) == [f"trial-{n}" for n in TRIALS]
    assert list(runs["State"]) == ["finished", "finished", "finished", "failed", "running", "finished"]
    assert len(history) == sum(len(curve) for *_, curve in TRIALS.values())
    assert history[history["Name"] == "trial-1"]["error"].tolist() == [0.8, 0.4, 0.125]


@pytest.mark.parametrize("to", FORMATS)
def test_each_format_has_a_library_or_says_how_to_get_it(study, to, monkeypatch):
    library = FORMATS[to].library
    if library is None:
        return
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(
        InputError, match=rf"--to {to} needs {FORMATS[to].install}, .*pip install {FORMATS[to].install}"
    ):
        export(study, to)


def test_a_path_that_is_there_is_left_alone_and_the_default_one_is_replaced(study, tmp_path, capsys):
    there = tmp_path / "mine"
    there.write_text("precious")
    assert main(["export", str(study), "--to", "csv", "--out", str(there)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert there.read_text() == "precious"
    for _ in range(2):
        assert main(["export", str(study), "--to", "csv"]) == 0
    assert capsys.readouterr().out.splitlines() == [str(study / "export" / "trials.csv")] * 2
    assert main(["export", str(study), "--to", "xml"]) == 2
    assert "must be one of csv, json" in capsys.readouterr().err


def test_a_writer_that_fails_leaves_nothing(study, tmp_path, monkeypatch):
    def fail(source, path):
        path.write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vmaptune.view.export._tables.write_csv", fail)
    assert main(["export", str(study), "--to", "csv", "--out", str(tmp_path / "x.csv")]) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_setting_that_does_not_exist_for_a_trial_goes_out_with_none_of_its_own(tmp_path):
    import mlflow
    import optuna

    from vmaptune import space as s
    from vmaptune.store.ledger import Ledger, TrialResult, TrialRow
    from vmaptune.store.states import State

    space = s.Space(
        {
            "optimizer": s.choice(["sgd", "adam"]),
            "momentum": s.reverseloguniform(0.5, 0.99, when={"optimizer": ["sgd"]}),
        }
    )
    params = [{"optimizer": "sgd", "momentum": 0.9}, {"optimizer": "adam", "momentum": None}]
    meta = {"name": "when", "space": space.to_json(), "objective": "y", "direction": "minimize", "state": "finished"}
    with Ledger.create(tmp_path / "s", meta) as ledger:
        ledger.add_round(0, "search", None, 2)
        ledger.add_trials(TrialRow(i, 0, 0, State.RUNNING, None, 0, 0, None, p) for i, p in enumerate(params))
        ledger.finish_trials(TrialResult(i, State.COMPLETE, None, 1, float(i)) for i in range(2))
    loaded = optuna.load_study(study_name=None, storage=f"sqlite:///{export(tmp_path / 's', 'optuna')}")
    assert [set(t.params) for t in loaded.trials] == [{"optimizer", "1-momentum"}, {"optimizer"}]
    runs = mlflow.MlflowClient(tracking_uri=f"sqlite:///{export(tmp_path / 's', 'mlflow')}").search_runs(["1"])
    assert sorted(len(run.data.params) for run in runs) == [1, 2]
    for to in ("tensorboard", "csv", "json", "parquet", "wandb-csv"):
        assert export(tmp_path / "s", to).exists()


def awkward(directory, name="Default"):
    """A study of what other tools can't take as it is, and with a winner that isn't the luckiest trial."""
    from vmaptune import space as s
    from vmaptune.store.ledger import CurvePoint, Ledger, TrialResult, TrialRow

    space = s.Space(
        {
            "on": s.choice([0, False, 1, True]),
            "mix": s.choice([1, "1", None, (1, 2), "(1, 2)"]),
            "inner": s.choice([None, 3], when={"on": [1]}),
        }
    )
    settings = [(0, 1, None), (False, "1", None), (1, None, None), (True, (1, 2), None), (1, "(1, 2)", 3)]
    params = [dict(zip(space, values, strict=True)) for values in settings]
    meta = {
        "name": name, "space": space.to_json(), "objective": "p@1", "direction": "minimize", "state": "finished",
        "result": {"best": {"trial": 2}},
    }  # fmt: skip
    metrics = {"p@1": 0.5, "p#1": 0.25, "train_loss": 0.125, "m" * 300: 1.0, "m" * 300 + "n": 2.0}
    with Ledger.create(directory, meta) as ledger:
        ledger.add_round(0, "search", None, len(params))
        ledger.add_trials(TrialRow(i, 0, 0, State.RUNNING, None, 0, 0, None, p) for i, p in enumerate(params))
        ledger.add_curve_points(CurvePoint(i, 1, 8.0, 0.5, metrics) for i in range(len(params)))
        ledger.finish_trials(TrialResult(i, State.COMPLETE, None, 1, 0.5 - i % 2, metrics) for i in range(len(params)))
    return directory


def test_options_that_equal_each_other_stay_apart_in_optuna(tmp_path):
    import optuna

    loaded = optuna.load_study(study_name=None, storage=f"sqlite:///{export(awkward(tmp_path / 's'), 'optuna')}")
    assert [t.params["on"] for t in loaded.trials] == [0, "False", 1, "True", 1]
    assert [type(t.params["on"]) for t in loaded.trials] == [int, str, int, str, int]
    assert [t.params["mix"] for t in loaded.trials] == [1, "1", None, "(1, 2)", "(1, 2)_2"]
    assert [t.params.get("inner", "not there") for t in loaded.trials] == ["not there"] * 2 + [None, "not there", 3]
    assert loaded.user_attrs["winner"] == 2


def test_tensorboard_gets_options_of_several_types_as_texts_everywhere(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import metadata

    path = export(awkward(tmp_path / "s"), "tensorboard")
    content = EventAccumulator(str(path)).Reload().summary_metadata[metadata.EXPERIMENT_TAG].plugin_data.content
    infos = {info.name: info for info in metadata.parse_experiment_plugin_data(content).hparam_infos}
    domain = [v.string_value for v in infos["mix"].domain_discrete.values]
    for trial in range(5):
        events = EventAccumulator(str(path / f"trial-{trial:05d}")).Reload()
        content = events.summary_metadata[metadata.SESSION_START_INFO_TAG].plugin_data.content
        found = metadata.parse_session_start_info_plugin_data(content).hparams
        assert found["mix"].string_value in domain
        assert [e.value for e in events.Scalars("train_loss")] == [0.125]  # the metric of this name
        assert [e.value for e in events.Scalars("train_loss_2")] == [8.0]


def test_mlflow_gets_every_metric_by_a_name_of_its_own(tmp_path):
    import mlflow

    path = export(awkward(tmp_path / "s"), "mlflow")
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{path}")
    experiment = client.get_experiment_by_name("Default")
    runs = {run.info.run_name: run.data for run in client.search_runs([experiment.experiment_id])}
    found = runs["trial-2"].metrics
    assert {n: v for n, v in found.items() if len(n) < 20} == {
        "p_1": 0.5, "p_1_2": 0.25, "train_loss": 0.125, "train_loss_2": 8.0,
    }  # fmt: skip
    assert sorted((len(n), v) for n, v in found.items() if len(n) > 20) == [(250, 1.0), (250, 2.0)]
    assert [name for name, data in runs.items() if "winner" in data.tags] == ["trial-2"]


def test_tables_tell_an_option_called_none_from_a_hyperparameter_that_does_not_exist(tmp_path):
    import pandas
    from pyarrow import parquet

    study = awkward(tmp_path / "s")
    rows = pandas.read_csv(export(study, "csv"), dtype=str, keep_default_na=False)
    assert rows["params.inner"].tolist() == ["", "", "None", "", "3"]
    assert rows["winner"].tolist() == ["False", "False", "True", "False", "False"]
    column = parquet.read_table(export(study, "parquet"))["params.inner"]
    assert column.to_pylist() == [None, None, "None", None, "3"]
    trials = json.loads(export(study, "json").read_text())["trials"]
    assert ["inner" in trial["params"] for trial in trials] == [False, False, True, False, True]
    runs = pandas.read_csv(export(study, "wandb-csv") / "runs.csv", dtype=str, keep_default_na=False)
    assert runs["config.inner"].tolist() == ["", "", "None", "", "3"]
    assert ["winner" in tags for tags in runs["Tags"]] == [False, False, True, False, False]


def test_an_export_tells_how_far_it_is(tmp_path):
    told = []
    export(awkward(tmp_path / "s"), "mlflow", progress=lambda *numbers: told.append(numbers))
    assert told == [(done, 5) for done in range(5)]
