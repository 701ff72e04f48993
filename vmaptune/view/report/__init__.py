"""The report: one self-contained page, made from the ledger alone. No JAX, no network.

`_gather` reads the ledger; `_settings`, `_training`, `_relations` and `_course` make the pictures; `_advice` and
`_answer` say what they mean; `_page` puts all of it together.
"""

from vmaptune.view.report._gather import StudyData, gather
from vmaptune.view.report._plotly import available
from vmaptune.view.report._plots import Plots
from vmaptune.view.report._write import FILE_NAME, card, write_pictures, write_report

__all__ = ["FILE_NAME", "Plots", "StudyData", "available", "card", "gather", "write_pictures", "write_report"]
