"""From a study directory to files: the page, and the pictures as PNG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vmaptune.errors import InputError, StudyError, VmaptuneError
from vmaptune.store.files import inside, write_whole
from vmaptune.store.reader import LedgerReader, Reading
from vmaptune.view.report._answer import esc, notebook_card
from vmaptune.view.report._gather import StudyData, gather
from vmaptune.view.report._page import page, pictures
from vmaptune.view.report._picture import to_figure

FILE_NAME = "report.html"
PNG_ADVICE = "pip install 'vmaptune[png]', and a Chrome or Chromium (apt-get install chromium, or: kaleido_get_chrome)"


def write_report(directory: str | Path, out: str | Path | None = None) -> Path:
    """Writes a study's report, whole or not at all; by default DIR/report.html. Returns its path.

    Raises:
      InputError: no study there, or Plotly is not installed. StudyError: no trial yet, or it cannot be written.
    """
    with LedgerReader.open(directory) as reader:
        data = gather(reader)
    path = Path(out) if out is not None else Path(directory) / FILE_NAME
    write_whole(path, page(data).encode("utf-8", "backslashreplace"))
    return path


def write_pictures(directory: str | Path, out: str | Path | None = None, scale: float = 2.0) -> list[Path]:
    """Writes every picture as a PNG of its own, for slides; by default into DIR/pictures/. Returns their paths.

    Raises:
      InputError: no study there, or Plotly, Kaleido or a browser for it is not there.
    """
    with LedgerReader.open(directory) as reader:
        data = gather(reader)
    folder = Path(out) if out is not None else inside(directory, "pictures")
    found = pictures(data)
    images = _rendered([to_figure(p, len(data.rounds)) for p in found], scale)
    written = []
    for picture, image in zip(found, images, strict=True):
        written.append(folder / f"{picture.name}.png")
        write_whole(written[-1], image)
    return written


def _rendered(figures: list[Any], scale: float) -> list[bytes]:
    try:
        import kaleido  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError:
        raise InputError(f"--png needs Kaleido, which is not installed: {PNG_ADVICE}") from None
    options = {"format": "png", "scale": scale, "width": 900}
    try:
        kaleido.start_sync_server(silence_warnings=True)
        try:
            return [kaleido.calc_fig_sync(f, opts=options | {"height": int(f.layout.height)}) for f in figures]
        finally:
            kaleido.stop_sync_server(silence_warnings=True)
    except VmaptuneError:
        raise
    except Exception as error:  # no browser, or one that does not start
        raise InputError(
            f"--png could not draw with a browser ({type(error).__name__}: {error}): {PNG_ADVICE}"
        ) from error


def card(reader: Reading) -> str:
    """The answer alone, as HTML for a notebook; one line when there is no trial yet."""
    try:
        return notebook_card(gather(reader))
    except StudyError as error:
        return f"<p>{esc(error)}</p>"


def data_of(directory: str | Path) -> StudyData:
    """What the pictures of a study are made from."""
    with LedgerReader.open(directory) as reader:
        return gather(reader)
