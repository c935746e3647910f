"""The precision at which a drafter loses nothing that its checkpoint has."""

from __future__ import annotations

from math import prod

import torch

from slipstream.core.layer_plan import LayerPlan
from slipstream.engine.integer_tiles import GROUP
from slipstream.engine.linear import int4_error
from slipstream.engine.model_files import ModelFolder, WeightFiles

# int4 that hurts the weights less than their own bfloat16 rounding several times over: the
# checkpoint was 4-bit already.
_FREE_INT4_ERROR = 0.01


def automatic_plan(folder: ModelFolder) -> LayerPlan:
    """The drafter's plan where none is given: all layers, int4 where that is free, else int8, and
    the head at int8.

    A checkpoint that comes from 4-bit files loses nothing when stored in 4 bits again; measured
    on the largest matrix of the middle layer.

    Raises:
        CheckpointError: the folder cannot be read.
    """
    largest = _largest_matrix(folder, f".layers.{folder.config.num_hidden_layers // 2}.")
    four_bit = (
        largest is not None
        and largest.shape[1] % GROUP == 0
        and int4_error(largest) < _FREE_INT4_ERROR
    )
    return LayerPlan(precision="int4" if four_bit else "int8", head_precision="int8")


def _largest_matrix(folder: ModelFolder, part: str) -> torch.Tensor | None:
    """The largest matrix with `part` in its name."""
    with WeightFiles(folder.path) as files:
        shapes = {
            name: shape
            for name, shape in files.shapes(part).items()
            if name.endswith("weight") and len(shape) == 2
        }
        if not shapes:
            return None
        return files.read(max(shapes, key=lambda name: prod(shapes[name])))
