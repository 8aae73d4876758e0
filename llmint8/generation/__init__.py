"""Answers of one model to several requests at a time, without HTTP: `llmint8.generation.engine`."""
