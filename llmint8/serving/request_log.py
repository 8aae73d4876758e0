"""A line of JSON for each request, without what was asked or answered."""

import datetime
import json
import sys
import time

from llmint8.serving.record import Record


def write(record: Record) -> None:
    """Writes the line of a request that is over to stderr.

    Args:
        record: What is known of the request.
    """
    now = time.perf_counter()
    line: dict[str, object] = {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
        "id": record.id,
        "client": record.client,
        "method": record.method,
        "path": record.path[:200],
        "status": record.status,
        "seconds": round(now - record.start, 4),
    }
    if (answer := record.answer) is not None:
        line["prompt_tokens"] = len(answer.prompt)
        line["completion_tokens"] = len(answer.tokens)
        line["finish_reason"] = answer.finish_reason or ("cancelled" if answer.cancelled else None)
        if answer.first is not None:
            line["first_token_seconds"] = round(answer.first - record.start, 4)
            line["tokens_per_second"] = round(len(answer.tokens) / (now - record.start), 2)
    print(json.dumps(line), file=sys.stderr, flush=True)
