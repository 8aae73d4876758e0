"""What an estimate says. All sizes are bytes."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from llmint8.estimation.cards import Card


@dataclass(frozen=True)
class Part:
    """Tensors that are not int8, of all layers together.

    Attributes:
        name: Name of the tensor, with `*` for the number of the layer: `model.layers.*.input_layernorm.weight`.
        dtype: As torch writes it: `"bfloat16"`.
        bytes: Bytes of all of them.
    """

    name: str
    dtype: str
    bytes: int


@dataclass(frozen=True)
class Weights:
    """What a loaded model holds: parameters and buffers, tied ones once.

    Attributes:
        int8: Codes of the int8 layers.
        scales: What int8 layers have besides: `weight_scale`, `column_scale` and the columns of mode `"static"`.
        kept: Everything else, largest first.
    """

    int8: int
    scales: int
    kept: tuple[Part, ...]

    @property
    def unquantized(self) -> int:
        """All of `kept`."""
        return sum(part.bytes for part in self.kept)

    @property
    def total(self) -> int:
        """What `model.get_memory_footprint()` returns."""
        return self.int8 + self.scales + self.unquantized


@dataclass(frozen=True)
class Footprint:
    """The memory of a model that runs.

    Attributes:
        weights: Parameters and buffers.
        kv_cache: Keys and values of all layers, or the states that a model has instead; None if it is not known.
        workspace: The most that is there besides at any time of a prefill or of the token after it.
        loading: The most that is there while the model is loaded: the weights, and the largest that is quantized.
    """

    weights: Weights
    kv_cache: int | None
    workspace: int | None
    loading: int

    @property
    def total(self) -> int:
        """Peak of a run: weights, cache and workspace, as far as they are known."""
        return self.weights.total + (self.kv_cache or 0) + (self.workspace or 0)


@dataclass(frozen=True)
class Fit:
    """Whether a model fits a GPU, with the context and batch of the estimate.

    Attributes:
        card: The GPU.
        int8: Whether it fits in 8 bit.
        unquantized: Whether it fits as it is.
        int8_context: The longest context that fits with that batch, 0 if none does; None if it is not known.
        unquantized_context: The same, unquantized.
    """

    card: Card
    int8: bool
    unquantized: bool
    int8_context: int | None
    unquantized_context: int | None


@dataclass(frozen=True)
class Estimate:
    """The memory that a model takes.

    Attributes:
        model: What was asked for.
        architecture: Class of the model.
        dtype: Dtype of activations, of the cache and of what is not int8.
        device: Kind of device that workspaces are for, `"cuda"` or `"cpu"`.
        context: Tokens of a sequence.
        batch: Sequences.
        max_context: Positions that the model was made for; None if it does not say.
        parameters: Number of them, tied ones once.
        int8: In 8 bit.
        unquantized: As it is.
        cards: Which GPUs it fits.
        notes: What a reader should know about these figures.
    """

    model: str
    architecture: str
    dtype: str
    device: str
    context: int
    batch: int
    max_context: int | None
    parameters: int
    int8: Footprint
    unquantized: Footprint
    cards: tuple[Fit, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Returns everything as JSON values, totals included; sizes are integers, in bytes."""
        result = dataclasses.asdict(self)
        for name, footprint in (("int8", self.int8), ("unquantized", self.unquantized)):
            result[name]["total"] = footprint.total
            result[name]["weights"]["unquantized"] = footprint.weights.unquantized
            result[name]["weights"]["total"] = footprint.weights.total
        for fit, card in zip(result["cards"], (fit.card for fit in self.cards), strict=True):
            fit["card"]["usable"] = card.usable
        return result
