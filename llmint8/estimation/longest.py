"""The longest context that fits into some memory."""

import bisect
from collections.abc import Sequence

# A context that is said to fit is rounded down to a multiple of this.
STEP = 64


def contexts_to_try(most: int, *others: int | None) -> list[int]:
    """Returns contexts, ascending, between which memory is as good as linear: each 4 times the one before.

    Args:
        most: The largest.
        *others: To try as well, the length of a window for instance; those that are not in 1 to `most` are left out.
    """
    contexts, context = {1, most}, most // 4
    while context >= STEP:
        contexts.add(context)
        context //= 4
    return sorted(contexts | {other for other in others if other is not None and 1 <= other <= most})


def longest_context(usable: int, contexts: Sequence[int], totals: Sequence[int]) -> int:
    """Returns the longest context that fits, 0 if none does.

    Args:
        usable: Bytes that there are.
        contexts: Ascending.
        totals: Bytes that each takes; linear between them.
    """
    fitting = bisect.bisect_right(totals, usable)
    if fitting in (0, len(contexts)):
        return contexts[fitting - 1] if fitting else 0
    (before, after), (less, more) = contexts[fitting - 1 : fitting + 1], totals[fitting - 1 : fitting + 1]
    context = before + (usable - less) * (after - before) // (more - less)
    return max(before, context // STEP * STEP)
