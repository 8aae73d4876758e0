"""`llmint8 chat`: talk to a model in the terminal."""

import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from llmint8.cli.settings import DtypeOption, TrustOption

if TYPE_CHECKING:
    from llmint8.chat.source import Source


def command(
    model: Annotated[
        str | None,
        typer.Argument(
            help="A folder, a name on the Hugging Face hub, or the address of a server, as http://127.0.0.1:8000; "
            "a small chat model by default."
        ),
    ] = None,
    system: Annotated[str, typer.Option(help="What the model is told beforehand.")] = "",
    temperature: Annotated[float | None, typer.Option(help="0 takes the most likely token.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Choose among tokens of this probability together.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Most tokens of an answer.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of each answer.")] = None,
    served_model: Annotated[str | None, typer.Option("--model", help="Which model of a server.")] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar="LLMINT8_API_KEY", show_envvar=True, help="Key of a server.")
    ] = None,
    load_in_8bit: Annotated[
        bool, typer.Option("--8bit/--16bit", help="Quantize a 16-bit checkpoint, or run it as it is.")
    ] = True,
    dtype: DtypeOption = None,
    trust_remote_code: TrustOption = False,
) -> None:
    """Talk to a model: answers come as they are generated, Ctrl-C stops one, /help lists commands.

    In a pipe each line is a question, and the answers alone go to stdout.
    """
    from llmint8.chat.conversation import Conversation
    from llmint8.chat.source import Sampling

    sampling = Sampling(temperature, top_p, max_tokens, seed)
    if model is not None and model.startswith(("http://", "https://")):
        if not load_in_8bit or dtype is not None or trust_remote_code:
            raise ValueError("--16bit, --dtype and --trust-remote-code are for a model that is loaded here")
        from llmint8.chat.remote import Remote

        source: Source = Remote(model, served_model, api_key)
    elif served_model is not None:
        raise ValueError("--model is for the address of a server")
    else:
        source = _local(model, load_in_8bit, dtype, trust_remote_code)
    from llmint8.chat.terminal import Terminal

    terminal = Terminal(source, Conversation(system), sampling)
    try:
        answered = terminal.run()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or flushing it at the end fails again
        answered = False
    if not answered:
        raise typer.Exit(1)


def _local(name: str | None, load_in_8bit: bool, dtype: str | None, trust_remote_code: bool) -> "Source":
    from rich.console import Console

    with Console(stderr=True).status("Loading"):
        from transformers import AutoTokenizer

        from llmint8.chat.local import Local
        from llmint8.cli.models import load, quiet
        from llmint8.default_model import NAME, default_model

        quiet()
        path = str(default_model()) if name is None else name
        model = load(path, load_in_8bit, dtype, trust_remote_code)
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
        return Local(NAME if name is None else name, model, tokenizer)
