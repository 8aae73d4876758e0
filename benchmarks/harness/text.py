"""The text that accuracy is measured on."""

from pathlib import Path

from torch import Tensor
from transformers import AutoTokenizer


def tokens_of(path: Path, text: Path | None, count: int) -> Tensor:
    """Returns the first tokens of a text file, or of Python's language reference: int64 [count].

    Args:
        path: Folder of a checkpoint with a tokenizer.
        text: The file, in UTF-8; the language reference if None.
        count: Number of tokens.

    Raises:
        ValueError: The text is shorter.
    """
    if text is None:
        from pydoc_data.topics import topics

        content = "\n".join(topics[name] for name in sorted(topics))
    else:
        content = text.read_text(encoding="utf-8")
    tokenizer = AutoTokenizer.from_pretrained(path, model_max_length=1 << 30)  # it is cut into windows later
    tokens = tokenizer(content, return_tensors="pt")["input_ids"][0]
    if len(tokens) < count:
        raise ValueError(f"the text has {len(tokens)} tokens, {count} are asked for")
    return tokens[:count]
