"""Where things go that are made once per user."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """Returns the folder for what is made once per user: `$LLMINT8_CACHE`, or `llmint8` in the user's cache."""
    if path := os.environ.get("LLMINT8_CACHE"):
        return Path(path)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llmint8"
