"""Rows of `cruxtune export --to tinker` as datums for `TrainingClient.forward_backward(datums, "cross_entropy")`."""

import json
from collections.abc import Iterator
from typing import Literal

import tinker
import torch
from tinker_cookbook.supervised.common import datum_from_model_input_weights


def datums(path: str, *, reduction: Literal["none", "mean"] = "none") -> Iterator[tinker.Datum]:
    """Yield one datum per row; nothing is cut.

    reduction "none" sums the weighted losses of a batch; "mean" makes the weights of every row add up to 1.
    """
    with open(path, encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            inputs = tinker.ModelInput.from_ints(row["tokens"])
            yield datum_from_model_input_weights(inputs, torch.tensor(row["weights"]), reduction=reduction)
