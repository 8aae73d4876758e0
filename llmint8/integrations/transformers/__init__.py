"""Makes transformers load, run and save int8 models."""

# Before any module of this folder: importing it has `registration.py` look into them, and they must be whole by then.
import transformers.modeling_utils  # noqa: F401
