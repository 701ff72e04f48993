"""What the live view costs: the processor time of its thread, and of the study's thread in it, to the run's time.

    python benchmarks/live_view.py [--trials N] [--json FILE]

Bar: at most 1 % of one core.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import tempfile
import time
from pathlib import Path

from _report import finish, row

EXPERIMENT = Path(__file__).parent.parent / "experiments" / "digits_mlp.py"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=512, help="of the study that is watched")
    parser.add_argument("--json", metavar="FILE", help="write the figures as JSON")
    args = parser.parse_args()
    os.environ["TERM"] = "xterm-256color"
    import vmaptune as vt
    from vmaptune.view.live import TerminalView

    class Measured(TerminalView):
        told = drawn = 0.0

        def progress(self, progress: object) -> None:
            started = time.thread_time()
            super().progress(progress)
            self.told += time.thread_time() - started

        def _draw(self) -> None:
            super()._draw()
            self.drawn = time.thread_time()

    screen = Terminal()
    view = Measured(screen, width=100)
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        study = vt.run(EXPERIMENT, trials=args.trials, out=Path(folder) / "study", listener=view, report=False)
        seconds = time.perf_counter() - started
        del study
    share = (view.told + view.drawn) / seconds
    rows = [row("share of one core that the live view takes", share, "at most 0.01", share <= 0.01, seconds=seconds,
                told=view.told, drawn=view.drawn, drawings=screen.getvalue().count("rounds"))]  # fmt: skip
    return finish("the live view", rows, args.json)


if __name__ == "__main__":
    sys.exit(main())
