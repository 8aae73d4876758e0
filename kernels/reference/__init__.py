"""The operators in plain PyTorch, from `llmint8.functional`: right on any device, fast on none."""
