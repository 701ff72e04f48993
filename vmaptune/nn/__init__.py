"""Layers whose settings may be traced, a value per lane, where Flax's own need a plain number.

`size(hp, "width")` is a width that is a plain number while the setting is static, and a traced number padded to
the largest width that the program serves otherwise: the same model runs dense, a program per width, or masked,
one program for all widths.
"""

from vmaptune.nn._batch import batch_mean, padded_batch
from vmaptune.nn._blocks import Blocks
from vmaptune.nn._choice import Chosen, activation, select
from vmaptune.nn._dropout import Dropout, LinenDropout
from vmaptune.nn._layers import BatchNorm, Conv, LayerNorm, Linear, RMSNorm
from vmaptune.nn._linen import LinenBatchNorm, LinenConv, LinenDense, LinenLayerNorm
from vmaptune.nn._sizes import Size, noted, size

__all__ = [
    "BatchNorm",
    "Blocks",
    "Chosen",
    "Conv",
    "Dropout",
    "LayerNorm",
    "Linear",
    "LinenBatchNorm",
    "LinenConv",
    "LinenDense",
    "LinenDropout",
    "LinenLayerNorm",
    "RMSNorm",
    "Size",
    "activation",
    "batch_mean",
    "noted",
    "padded_batch",
    "select",
    "size",
]  # fmt: skip
