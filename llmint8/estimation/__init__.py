"""How much memory a model takes in 8 bit and unquantized, from its configuration alone."""

from llmint8.estimation.cards import CARDS, Card
from llmint8.estimation.compute import estimate
from llmint8.estimation.result import Estimate, Fit, Footprint, Part, Weights

__all__ = ["CARDS", "Card", "Estimate", "Fit", "Footprint", "Part", "Weights", "estimate"]
