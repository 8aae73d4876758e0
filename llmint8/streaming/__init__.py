"""16-bit checkpoint to int8 checkpoint, tensor by tensor, without the model ever being in memory.

transformers' own code decides what is read, renamed, converted and written, on a model on the meta device; this package
only calls it with a few tensors at a time. `weights` is that model, `shard` a file of the new checkpoint, `staging` the
folder it grows in.
"""

from llmint8.streaming.run import QuantizedCheckpoint, quantize_checkpoint

__all__ = ["QuantizedCheckpoint", "quantize_checkpoint"]
