"""Tables of numbers and categories: their columns as arrays, the network that is tuned on them, and its predictions."""

from vmaptune.tables._columns import Columns, Kind, is_frame, read_columns
from vmaptune.tables._experiment import table_experiment
from vmaptune.tables._forward import Network
from vmaptune.tables._saved import STUDY, load_plain, save_plain
from vmaptune.tables._split import merged, validation_rows

__all__ = ["STUDY", "Columns", "Kind", "Network", "is_frame", "load_plain", "merged", "read_columns", "save_plain",
           "table_experiment", "validation_rows"]  # fmt: skip
