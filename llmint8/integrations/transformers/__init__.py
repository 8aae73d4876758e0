"""Makes transformers load, run and save int8 models: registered when `llmint8` is imported."""

from llmint8.integrations.transformers.registration import register

__all__ = ["register"]
