"""panda: one model, watched over and adjusted while it trains."""

from __future__ import annotations

import argparse
import math
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vmaptune.cli._common import NOTHING_TRAINED, OK, add_as_written, add_experiment, parse_changes, strict_json
from vmaptune.errors import InputError

if TYPE_CHECKING:
    from vmaptune.study._panda import Panda
    from vmaptune.view.live._panda import Keyboard, Picture

FACTOR = 2.0  # of one press of + or -
ADJUSTMENT = re.compile(r"\s*(\d+)\s*:\s*([A-Za-z]\w*)\s*([-+*/]?)=\s*(\S+)\s*")


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds this family's command to the parser."""
    command = commands.add_parser("panda", help="babysit one model: adjust its settings while it trains")
    add_experiment(command)
    command.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", dest="changes",
        help="a setting's value; one that is not given lies in the middle of its scale",
    )  # fmt: skip
    command.add_argument("--steps", type=int, metavar="K", help="training steps")
    command.add_argument("--seed", type=int, metavar="SEED", help="the model's own seed")
    command.add_argument(
        "--from", metavar="STUDY[:TRIAL]", dest="origin", help="take up a study's winner, or any trial's setting"
    )
    command.add_argument(
        "--adjust", action="append", default=[], metavar="'STEP: NAME*=X'",
        help="change a setting at a step, e.g. --adjust '500: learning_rate*=0.1' (also /=, +=, -=, =)",
    )  # fmt: skip
    command.add_argument("--out", metavar="DIR", help="the study's directory (default runs/<experiment>-panda)")
    add_as_written(command)
    command.add_argument("--quiet", action="store_true", help="no live curve")
    command.add_argument("--json", action="store_true", help="print one JSON object last")
    command.set_defaults(function=_panda)


@dataclass(frozen=True)
class Adjustment:
    """`500: learning_rate*=0.1`."""

    step: int
    name: str
    operation: str  # "*", "/", "+", "-", or "" to replace the value
    number: float

    def of(self, value: float) -> float:
        """What the setting becomes."""
        x = self.number
        results = {"*": lambda: value * x, "/": lambda: value / x, "+": lambda: value + x, "-": lambda: value - x}
        return results.get(self.operation, lambda: x)()


def parse_adjustments(texts: Sequence[str]) -> list[Adjustment]:
    """Reads `--adjust`, each of one or more changes that are separated by commas or semicolons, by step.

    Raises:
      InputError: one that reads otherwise.
    """
    found = []
    for text in filter(str.strip, (part for given in texts for part in re.split(r"[;,]", given))):
        match = ADJUSTMENT.fullmatch(text)
        try:
            number = float(match[4]) if match else math.nan
        except ValueError:
            number = math.nan
        if not match or not math.isfinite(number) or (match[3] == "/" and number == 0):
            raise InputError(f"--adjust must read 'STEP: NAME*=NUMBER' (or /=, +=, -=, =), but got {text.strip()!r}")
        found.append(Adjustment(int(match[1]), match[2], match[3], number))
    return sorted(found, key=lambda a: a.step)


def _panda(args: argparse.Namespace) -> int:
    from vmaptune.engine.devices import prepare_devices
    from vmaptune.experiment import load_experiment
    from vmaptune.study._panda import panda
    from vmaptune.view.live._panda import Keyboard, PandaScreen
    from vmaptune.view.summary import panda_text

    params = parse_changes(args.changes)
    for name, value in params.items():
        if not isinstance(value, (int, float, str, bool, tuple, type(None))):
            raise InputError(f"--set {name}: a panda trains one setting, so it must be a value, but got {value!r}")
    adjustments = parse_adjustments(args.adjust)
    if args.out is not None and not args.out.strip():
        raise InputError("--out must name a directory, but got an empty name; leave it out for runs/<experiment>-panda")
    note = prepare_devices()
    if note:
        print(f"note: {note}", file=sys.stderr)
    source = load_experiment(args.experiment)
    model = panda(
        source, params=params, origin=args.origin, steps=args.steps, seed=args.seed, out=args.out,
        as_written=args.as_written,
    )  # fmt: skip
    _check(adjustments, model)
    model.begin()
    state = "failed"
    with Keyboard() as keys:
        screen = None
        try:
            screen = PandaScreen(keys=keys.there, quiet=args.quiet)
            _train(model, adjustments, keys, screen)
            state = "finished"
        except KeyboardInterrupt:
            state = "interrupted"
            raise
        finally:
            if screen is not None:
                screen.close()
            study = model.finish(state)
    print(strict_json(study.result) if args.json else panda_text(study.result, study.space))
    return OK if study.result["best"] is not None else NOTHING_TRAINED


def _check(adjustments: Sequence[Adjustment], model: Panda) -> None:
    for change in adjustments:
        if change.name not in model.settings or not 0 <= change.step < model.steps:
            raise InputError(
                f"--adjust {change.step}: {change.name}: it must name one of {', '.join(model.settings) or 'none'} "
                f"and a step from 0 to {model.steps - 1}"
            )


def _train(model: Panda, adjustments: list[Adjustment], keys: Keyboard, screen: Any) -> None:
    """Trains to the end, with what the person presses and `--adjust` says."""
    from vmaptune.view.live._snapshot import Rate

    hands = Hands(model)
    waiting = list(adjustments)
    rate = Rate()
    trained = 0  # steps in all, those that were rolled back too
    while not hands.over:
        while waiting and waiting[0].step <= model.step and not model.bad:
            change = waiting.pop(0)
            model.adjust(change.name, change.of(model.settings[change.name]))
        idle = hands.paused or model.over
        key = keys.pressed(0.2 if idle else 0.0)
        if key is not None:
            hands.press(key)
        elif model.over and not (keys.there and model.bad is not None):
            break  # done; where a loss is not finite a person may still roll back
        elif not idle:
            before = model.step
            model.advance(waiting[0].step if waiting else None)
            trained += model.step - before
            if model.bad is not None:
                hands.message = f"the loss is not finite at step {model.bad}: r rolls back, q stops"
        speed = None if idle else rate.update(time.monotonic(), trained)
        screen.show(_picture(model, hands, speed), now=key is not None)
    screen.show(_picture(model, hands, None), now=True)


class Hands:
    """What a person's keys do."""

    def __init__(self, model: Panda):
        self.model = model
        self.names = list(model.settings)
        self.chosen = 0
        self.paused = self.over = False
        self.message = ""

    @property
    def name(self) -> str | None:
        """The setting that + and - change."""
        return self.names[self.chosen] if self.names else None

    def press(self, key: str) -> None:
        """Does what a key says; an unknown one does nothing."""
        self.message = ""
        if key in "pP ":
            self.paused = not self.paused
        elif key == "\t" and self.names:
            self.chosen = (self.chosen + 1) % len(self.names)
        elif key in "+*=" or key in "-/":
            try:
                self._change(up=key in "+*=")
            except InputError as error:  # past what a lane can hold: it stays as it is
                self.message = str(error)
        elif key in "sS" and self.model.bad is None:
            self.model.snapshot()
        elif key in "rR":
            self.model.rollback()
            self.message = "rolled back and paused: p goes on"
            self.paused = True
        elif key in "qQ":
            self.over = True

    def _change(self, up: bool) -> None:
        if self.name is None:
            return
        space, value = self.model.experiment.space, self.model.settings[self.name]
        factor = FACTOR if up else 1 / FACTOR
        if space[self.name].kind == "reverseloguniform":  # towards 1 by halving what is missing
            self.model.adjust(self.name, 1 - (1 - value) / factor)
        elif value == 0:
            self.message = f"{self.name} is 0, and stays 0 times anything: give it a value with --set or --adjust"
        elif space[self.name].is_integer:
            self.model.adjust(self.name, max(1, round(value * factor)) if value > 0 else value * factor)
        else:
            self.model.adjust(self.name, value * factor)


def _picture(model: Panda, hands: Hands, rate: float | None) -> Picture:
    from vmaptune.view.live._panda import Picture

    return Picture(
        name=str(model.directory), objective=model.experiment.objective, step=model.step, steps=model.steps,
        losses=[(p.step, p.loss) for p in model.curve], values=[(p.step, p.value) for p in model.curve],
        settings=model.settings, chosen=hands.name, marks=[(m.step, m.kind, m.text) for m in model.marks],
        paused=hands.paused, message=hands.message, seconds=time.perf_counter() - model.started, rate=rate,
        given_up=[(p.step, p.value) for p in model.given_up],
        fixed={n: v for n, v in model.params.items() if n not in model.settings},
    )  # fmt: skip
