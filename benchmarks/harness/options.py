"""Options that the benchmarks of whole models share."""

from pathlib import Path
from typing import Annotated

import torch
import typer

Models = Annotated[str, typer.Option(help="Names or folders of 16-bit checkpoints, separated by commas.")]
Only = Annotated[str, typer.Option(help="Adapters in systems/, separated by commas; empty for the main table's.")]
Rounds = Annotated[int, typer.Option(help="Interleaved repeats.")]
Threads = Annotated[int, typer.Option(help="Of the processor.")]
Device = Annotated[str, typer.Option(help="cpu, or a GPU as torch names it.")]
Limit = Annotated[float, typer.Option(help="Seconds that loading or an answer may take.")]
Output = Annotated[Path | None, typer.Option(help="CSV to append to, once everything is measured.")]

THREADS = torch.get_num_threads()
