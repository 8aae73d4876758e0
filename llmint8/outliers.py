"""`OutlierRule`: how a layer treats the columns of its input, as one value from the configuration to the kernels."""

from typing import Literal, NamedTuple

OutlierMode = Literal["threshold", "budget", "static", "none"]


class OutlierRule(NamedTuple):
    """How the outlier columns of an input are chosen, and how the others are quantized.

    `Int8Config.rule` makes one for a layer, with the budget in columns. The operators take its fields one by one, in
    this order, since a schema of PyTorch knows no such type: `torch.ops.llmint8.int8_linear(..., *rule)`. In C++ it is
    the struct of the same name in `kernels/cpu/csrc/linear.h`.

    Attributes:
        mode: `"threshold"`, `"budget"`, `"static"` or `"none"`.
        threshold: Smallest score of an outlier column, in the modes `"threshold"` and `"budget"`.
        budget: Largest number of outlier columns, in mode `"budget"`; in mode `"static"` a record of the calibration.
        relative: Whether a feature is scored relative to the root mean square of its row.
        symmetric: Whether activations are quantized without a zero point.
    """

    mode: OutlierMode
    threshold: float = 0.0
    budget: int = 0
    relative: bool = False
    symmetric: bool = False


# What the kernels for few rows need: they quantize no input, so there is nothing to choose.
NO_OUTLIERS = OutlierRule("none")
