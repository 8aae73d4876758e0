"""The options that say how a model is quantized, the same for every command."""

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from llmint8.config import Int8Config


class Mode(StrEnum):
    """How outlier columns are chosen."""

    budget = "budget"
    threshold = "threshold"
    none = "none"


ModeOption = Annotated[Mode | None, typer.Option(help="How outlier columns are chosen.")]
BudgetOption = Annotated[
    str | None, typer.Option(help="Most outlier columns of a layer: a number, or a share; 0.125 by default.")
]
ThresholdOption = Annotated[
    float | None, typer.Option(help="Smallest score of an outlier; without a budget, as in the paper (6.0).")
]
RelativeOption = Annotated[
    bool | None, typer.Option("--relative/--absolute", help="Scores in root mean squares of a token, or as they are.")
]
SymmetricOption = Annotated[bool, typer.Option("--symmetric", help="Quantize activations without a zero point.")]
SkipOption = Annotated[list[str] | None, typer.Option(help="Layers to keep as they are.")]
IncludeOption = Annotated[
    list[str] | None, typer.Option(help="Layers to quantize although they are kept by default, such as lm_head.")
]
DtypeOption = Annotated[
    str | None, typer.Option(help="float16, bfloat16 or float32: of what is not int8. The model's own by default.")
]
TrustOption = Annotated[bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def settings(
    mode: Mode | None,
    budget: str | None,
    threshold: float | None,
    relative: bool | None,
    symmetric: bool,
    skip: list[str] | None,
    include: list[str] | None,
    checkpoint_format: str = "llmint8",
) -> "Int8Config":
    """Returns the settings that were asked for.

    Raises:
        ValueError: One is out of range, or two contradict each other.
    """
    from llmint8.config import Int8Config

    return Int8Config(
        mode=None if mode is None else mode.value,
        threshold=threshold,
        budget=None if budget is None else columns(budget),
        relative=relative,
        symmetric=symmetric,
        skip_modules=tuple(skip or ()),
        include_modules=tuple(include or ()),
        checkpoint_format=checkpoint_format,
    )


def columns(text: str) -> int | float:
    """Reads a budget: a number of columns, or a share of them.

    Raises:
        ValueError: It is neither.
    """
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    raise ValueError(f"--budget must be a number of columns or a share of them, got {text!r}")
