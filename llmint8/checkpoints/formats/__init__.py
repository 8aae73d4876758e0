"""The formats of int8 checkpoints."""
