"""What exp.py declares: the experiment, its data, and how they become a Task."""

from vmaptune.experiment._built import lane_settings, order_key
from vmaptune.experiment._data import Data, row_shapes, stand_in
from vmaptune.experiment._experiment import (
    MOST_STEPS,
    Experiment,
)
from vmaptune.experiment._load import LoadedExperiment, load_experiment, not_while_importing
from vmaptune.experiment._measures import bind_model, check_blocks, checked_metrics, metrics_on, model_arrays
from vmaptune.experiment._order import batches as rows_of_batches
from vmaptune.experiment._places import described, settings_text
from vmaptune.experiment._tracing import Statics, find_statics, lane_arguments, raise_as_input_error

__all__ = [
    "MOST_STEPS", "Data", "Experiment", "LoadedExperiment", "Statics", "bind_model", "check_blocks", "checked_metrics",
    "described", "find_statics", "lane_arguments", "lane_settings", "load_experiment", "metrics_on", "model_arrays",
    "not_while_importing", "order_key", "raise_as_input_error", "row_shapes", "rows_of_batches", "settings_text",
    "stand_in",
]  # fmt: skip
