"""A chat in a terminal, with a model in this process or behind a server. Imported by `llmint8 chat` only."""
