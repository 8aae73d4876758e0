"""Parts of transformers models in fewer, larger operators, for inference on a CPU; see `README.md`."""

from llmint8.integrations.transformers.fused.modules import fuse, unfuse

__all__ = ["fuse", "unfuse"]
