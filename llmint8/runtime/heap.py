"""Gives back the memory of the C heap that is free, which glibc keeps for what the process may want next."""

import ctypes


def trim() -> None:
    """Returns free memory to the system, where the C library can (glibc); does nothing elsewhere.

    While weights are read and quantized, one tensor after another is allocated and freed: up to hundreds of MB that
    would stay resident.
    """
    try:
        malloc_trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # another C library, or another system
        return
    malloc_trim(0)
