"""What a person sees while a study runs: in a terminal, in a log, in a notebook, from another terminal."""

from __future__ import annotations

import io
import os
import re
import sys
import threading
import time
import types
from pathlib import Path

import pytest
from ledgers import TRIALS, write_study

from vmaptune.cli import main
from vmaptune.store.ledger import Ledger, LedgerReader
from vmaptune.study import Progress
from vmaptune.view import live as views
from vmaptune.view.live._snapshot import Rate, Snapshot, from_ledger, look
from vmaptune.view.live._spark import sparkline

EXPERIMENTS = Path(__file__).parent.parent / "experiments"


def progress(**changes) -> Progress:
    values = {
        "round": 1, "rounds": 3, "phase": "search", "done": 40, "trials": 96, "model_steps": 1000, "total_steps": 9600,
        "seconds": 12.0, "best": 0.125, "infeasible": 2, "name": "by-hand", "directory": "", "objective": "error",
        "best_params": {"learning_rate": 0.01, "momentum": 0.99}, "stopped": 5, "steps_seen": 1500, "alive": 16,
        "waiting": 8, "refilled": 3,
    }  # fmt: skip
    return Progress(**(values | changes))


def drawn(shown: Snapshot, width: int = 100, height: int = 30) -> list[str]:
    from rich.console import Console

    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=False)
    console.print(views.panel(shown, width, height))
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize(
    ("curve", "width", "wanted"),
    [
        ([0.0, 1.0], 8, "▁█"),
        ([8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0], 8, "█▇▆▅▄▃▂▁"),
        ([8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0], 4, "▇▅▃▁"),  # 7, 5, 3, 1: the last value of each share
        ([1e-4, 1e-3, 1e-2, 1e-1], 8, "▁▃▆█"),  # over more than a factor of 20 on a log scale
        ([1.0, float("nan"), 2.0, None], 8, "▁×█×"),
        ([5.0, 5.0], 8, "▁▁"),
        ([], 8, ""),
    ],
)
def test_sparkline(curve, width, wanted):
    assert sparkline(curve, width) == wanted


def test_a_look_finds_the_best_curves_those_of_running_trials_too(tmp_path):
    with LedgerReader.open(write_study(tmp_path / "s")) as reader:
        looked = look(reader, "minimize")
        assert [c.trial for c in looked.curves] == [1, 5, 0, 4]  # 0.125, 0.15, 0.25, and 0.45 of one that still trains
        assert [c.running for c in looked.curves] == [False, False, False, True]
        assert looked.curves[0].values == TRIALS[1][3]
        assert (looked.best, looked.best_params["learning_rate"]) == (0.125, 0.1)
        assert [c.trial for c in look(reader, "maximize").curves] == [4, 0, 5, 1]


def test_the_ledger_alone_gives_the_whole_picture(tmp_path):
    directory = write_study(tmp_path / "s")
    with Ledger.open(directory) as ledger:
        ledger.set_meta("live", {"time": time.time() - 5, "phase": "confirm", "seconds": 20.0, "steps_seen": 110,
                                 "total_steps": 240, "waiting": 0, "refilled": 2, "rungs": [],
                                 "bound": None})  # fmt: skip
    with LedgerReader.open(directory) as reader:
        s = from_ledger(reader)
    assert (s.name, s.objective, s.round, s.rounds, s.phase) == ("by-hand", "error", 1, 1, "confirm")
    assert (s.done, s.trials, s.alive, s.complete, s.stopped, s.infeasible) == (5, 8, 1, 3, 1, 1)
    assert (s.best, s.refilled, s.model_steps, s.total_steps) == (0.125, 2, 110, 240)
    assert 24 < s.seconds < 60
    assert 4 < s.silent < 60


BEST = {
    "trial": 0, "value": 0.3, "value_std": 0.02, "repeats": 4, "best_seen": 0.125, "params": {"learning_rate": 0.01},
}  # fmt: skip


def finished(directory: Path) -> Path:
    """A study whose winner is another trial than the luckiest, which is 1."""
    with Ledger.open(write_study(directory)) as ledger:
        result = {"best": BEST, "seconds": {"total": 3.0}, "model_steps": 90}
        for key, value in {"result": result, "state": "finished", "finished": True}.items():
            ledger.set_meta(key, value)
    return directory


def test_a_finished_study_shows_its_winner_and_not_the_luckiest_trial(tmp_path, capsys):
    directory = finished(tmp_path / "s")
    with LedgerReader.open(directory) as reader:
        shown = from_ledger(reader)
    assert [(c.trial, c.winner) for c in shown.curves] == [(0, True), (1, False), (5, False), (4, False)]
    assert main(["watch", str(directory), "--once"]) == 0
    assert "winner 0.3 ± 0.02 over 4 fresh seeds, best single value 0.125" in capsys.readouterr().out
    text = "\n".join(drawn(shown))
    assert "error 0.3 ± 0.02 over 4 fresh seeds" in text
    assert "learning_rate=0.01" in text
    assert "★0" in text
    assert "alive" not in text


def test_the_last_line_of_a_notebook_is_the_winners(tmp_path, monkeypatch):
    written: list[str] = []
    view = views.NotebookLine()
    monkeypatch.setattr(view, "_write", written.append)
    view.progress(progress(directory=str(finished(tmp_path / "s")), best_params={"learning_rate": 0.1}))
    view.close()
    assert "winner 0.3 ± 0.02 over 4 fresh seeds" in written[-1]
    assert written[-1].endswith("(learning_rate=0.01)")


def test_the_rate_is_that_of_the_last_while():
    rate = Rate()
    assert rate.update(0.0, 0) is None
    assert rate.update(1.0, 100) == 100
    assert rate.update(2.0, 100) == 50  # nothing came: it falls
    waiting = Rate()
    assert waiting.update(0.0, 0, compiling=True) is None
    assert waiting.update(30.0, 0) is None  # half a minute of compiling is left out
    assert waiting.update(31.0, 100) == 100
    for second in range(3, 60):
        last = rate.update(float(second), 1000 * second)
    assert last == pytest.approx(1000, rel=0.01)  # the slow beginning is forgotten


def test_the_panel_says_it_all_and_fits_the_terminal(tmp_path):
    with LedgerReader.open(write_study(tmp_path / "s")) as reader:
        looked = look(reader, "minimize")
    shown = views.from_progress(progress(bound=1000.0, rungs=((15, 40), (45, 12), (135, 3))), 430.0, looked)
    text = "\n".join(drawn(shown))
    for words in (
        "by-hand · minimize error", "round 2/3", "step 15: 40 → step 45: 12 → end: 3",
        "40/96 trials", "19s left", "16 alive", "8 waiting",
        "33 complete", "5 stopped", "3 refilled", "2 infeasible", "430 model-steps/s (43% of the machine's bound)",
        "error 0.125", "momentum=1-0.01", "#1 ▇▃▁",
    ):  # fmt: skip
        assert words in text, words
    for width, height in ((100, 30), (80, 24), (60, 12), (30, 10)):
        lines = drawn(shown, width, height)
        assert len(lines) <= height, (width, height)
        assert max(map(len, lines)) <= width
    narrow = " ".join(line.strip("│ ") for line in drawn(shown, 60, 24))
    for words in ("2 infeasible", "momentum=1-0.01", "end: 3", "machine's bound)"):  # folded between words
        assert words in narrow, words


def test_names_are_shown_as_they_are_and_style_nothing():
    shown = views.from_progress(progress(name="[red]x[/]", objective="[bold]y"), None)
    assert "[red]x[/] · minimize [bold]y" in "\n".join(drawn(shown))


def test_what_no_summary_says_again_is_said_though_notes_are_left_out(monkeypatch):
    out = io.StringIO()
    view = views.PlainLines(out, notes=False)
    view.note("a warning")
    view.say("stopping after this segment")
    terminal = views.TerminalView(screen := Terminal(), notes=False)
    terminal.note("a warning")
    terminal.say("stopping after this segment")
    assert out.getvalue() == "stopping after this segment\n"
    assert screen.getvalue().strip() == "stopping after this segment"


@pytest.mark.parametrize(
    ("losses", "shown"), [([], True), ([(5, 0.5), (10, float("nan"))], True), ([(5, float("nan"))], False)]
)
def test_a_task_without_a_loss_shows_none_in_panda_mode(losses, shown):
    from rich.console import Console

    from vmaptune.view.live._panda import Picture, panda_line, panda_panel

    picture = Picture(name="x", objective="error", step=10, steps=40, losses=losses, values=[(10, 0.2)],
                      settings={"a": 0.1}, chosen="a")  # fmt: skip
    console = Console(file=io.StringIO(), width=60, height=20)
    console.print(panda_panel(picture, 60, 20))
    assert ("training loss" in console.file.getvalue()) == shown
    assert ("loss" in panda_line(picture)) == (shown and bool(losses))


def test_a_log_gets_plain_lines_at_new_phases_and_now_and_then():
    out = io.StringIO()
    view = views.live(out)
    assert type(view) is views.PlainLines
    for changes in ({}, {}, {"round": 2}, {"phase": "confirm"}, {}):
        view.progress(progress(**changes))
    view.note("mind the gap")
    view.close()
    lines = out.getvalue().splitlines()
    assert [re.sub(r"^\[12s\] ", "", line).split(" · ")[0] for line in lines] == [
        "round 2/3", "round 3/3", "confirming", "round 2/3", "note: mind the gap",
    ]  # fmt: skip
    assert "best 0.125 · 5 stopped · 2 diverged" in lines[0]
    assert "\x1b" not in out.getvalue()
    assert "\r" not in out.getvalue()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_is_redrawn_in_place_and_left_clean(monkeypatch, tmp_path):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr("vmaptune.view.live._terminal.LEAST", 0.01)
    out = Terminal()
    view = views.live(out)
    assert type(view) is views.TerminalView
    view.progress(progress(directory=str(write_study(tmp_path / "s"))))
    for _ in range(300):
        if "#1" in out.getvalue():  # the thread has looked into the ledger
            break
        time.sleep(0.02)
    view.note("mind the gap")
    view.close()
    text = out.getvalue()
    assert "by-hand" in text
    assert "#1" in text
    assert "note: mind the gap" in text
    assert "\x1b[2J" not in text  # never the whole screen: that flickers
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1  # the cursor is given back
    view.close()  # twice does no harm
    assert not [t for t in threading.enumerate() if t.name == "vmaptune-view"]


def test_a_drawing_costs_so_little_that_it_waits_long_enough(monkeypatch):
    """The pause after a drawing grows with what the drawing cost: it stays below its share of the time."""
    from vmaptune.view.live import _terminal

    waits: list[float] = []
    clock = iter(range(1000))
    monkeypatch.setattr(_terminal, "time", types.SimpleNamespace(
        thread_time=lambda: 0.1 * next(clock), monotonic=time.monotonic))  # fmt: skip
    view = views.TerminalView(Terminal())
    view._last = (progress(), time.monotonic())
    view._live = types.SimpleNamespace(update=lambda *_, **__: None)
    view._next_look = float("inf")

    class Over:
        def wait(self, seconds):
            waits.append(seconds)
            return len(waits) > 2

    view._over = Over()
    view._draw()
    assert waits[0] == _terminal.LEAST
    assert waits[1] == pytest.approx(0.1 / _terminal.DRAWING_SHARE)


def test_a_notebook_gets_one_line_that_changes(monkeypatch):
    shown: list[tuple[str, str]] = []

    def display(data, raw, display_id):
        shown.append(("new", data["text/plain"]))
        return types.SimpleNamespace(update=lambda data, raw: shown.append(("update", data["text/plain"])))

    ipython = types.ModuleType("IPython")
    ipython.display = types.ModuleType("IPython.display")
    ipython.display.display = display
    ipython.get_ipython = lambda: types.SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", ipython.display)
    view = views.live()
    assert type(view) is views.NotebookLine
    view.progress(progress())
    view.progress(progress(round=2))
    view.close()
    assert [kind for kind, _ in shown] == ["new", "update", "update"]
    assert "round 3/3" in shown[1][1]
    assert "learning_rate=0.01" in shown[2][1]


def test_watch_shows_once_or_until_the_end(tmp_path, capsys):
    directory = write_study(tmp_path / "s")
    assert main(["watch", str(directory), "--once"]) == 0
    assert "confirming · 5/8 trials" in capsys.readouterr().out

    def finish():
        with Ledger.open(directory) as ledger:
            ledger.set_meta("state", "interrupted")

    timer = threading.Timer(0.3, finish)
    timer.start()
    assert main(["watch", str(directory)]) == 0
    timer.join()
    assert "interrupted" in capsys.readouterr().out.splitlines()[-1]
    assert main(["watch", str(tmp_path / "none")]) == 2


def test_run_draws_in_a_real_terminal_and_quiet_draws_nothing(tmp_path):
    import pexpect

    words = ["-m", "vmaptune", "run", str(EXPERIMENTS / "toy.py"), "--trials", "64", "--rounds", "2", "--out"]
    child = pexpect.spawn(sys.executable, [*words, str(tmp_path / "a")], encoding="utf-8", dimensions=(30, 100),
                          env={**os.environ, "TERM": "xterm-256color"}, timeout=120)  # fmt: skip
    child.expect("minimize log10_loss")
    child.expect("the setting to use")
    child.expect(pexpect.EOF)
    child = pexpect.spawn(sys.executable, [*words, str(tmp_path / "b"), "--quiet"], encoding="utf-8", timeout=120)
    child.expect(pexpect.EOF)
    assert "\x1b" not in child.before
    assert "the setting to use" in child.before
    assert (tmp_path / "a" / "trials.csv").read_bytes() == (tmp_path / "b" / "trials.csv").read_bytes()
