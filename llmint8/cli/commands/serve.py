"""`llmint8 serve`: a model behind OpenAI's API."""

from typing import Annotated

import typer

from llmint8.cli.settings import BudgetOption, DtypeOption, ModeOption, ThresholdOption, TrustOption, columns


def command(
    model: Annotated[
        str | None, typer.Argument(help="A folder or a name on the Hugging Face hub; a small chat model by default.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 for any.", min=0, max=65535)] = 8000,
    api_key: Annotated[
        str | None, typer.Option(envvar="LLMINT8_API_KEY", show_envvar=True, help="Key that clients must send.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="What clients call the model; the last part of its path.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Most tokens of an answer.")] = 1024,
    max_prompt_tokens: Annotated[int, typer.Option(help="Most tokens of a prompt.")] = 4096,
    max_queue: Annotated[int, typer.Option(help="Requests that may wait; more get status 429.")] = 128,
    max_body: Annotated[int, typer.Option(help="Most bytes of a request.")] = 1 << 20,
    continuous_batching: Annotated[bool, typer.Option(help="Generate several answers at the same time.")] = True,
    slots: Annotated[
        int | None, typer.Option(help="How many; by default what the kernels decode at once, 32 at most: 8 on a CPU.")
    ] = None,
    shutdown_seconds: Annotated[int, typer.Option(help="On SIGTERM, until answers are cut off.")] = 20,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    dtype: DtypeOption = None,
    mode: ModeOption = None,
    threshold: ThresholdOption = None,
    budget: BudgetOption = None,
    trust_remote_code: TrustOption = False,
    ui: Annotated[bool, typer.Option("--ui", help="Add a page to chat on, at the address itself.")] = False,
) -> None:
    """Serve a model with OpenAI's API: /v1/chat/completions, /v1/completions, /v1/models, /health, /metrics, /info."""
    if slots not in (None, 1) and not continuous_batching:
        raise ValueError(f"--slots {slots} contradicts --no-continuous-batching, which has one")
    from llmint8 import serving

    settings = serving.Settings(
        api_key=api_key,
        max_tokens=max_tokens,
        max_prompt_tokens=max_prompt_tokens,
        max_queue=max_queue,
        max_body=max_body,
        slots=slots if continuous_batching else 1,
        shutdown_seconds=shutdown_seconds,
    )
    from transformers.utils import logging

    from llmint8.default_model import default_model
    from llmint8.serving import server

    if ui:
        from llmint8.serving.ui import check_installed, mount

        check_installed()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    listener = server.bind(host, port)
    outliers = {
        "mode": None if mode is None else mode.value,
        "threshold": threshold,
        "budget": None if budget is None else columns(budget),
    }
    manager = serving.Int8ModelManager(
        str(default_model()) if model is None else model,
        name=name,
        device=device,
        dtype=dtype or "auto",
        trust_remote_code=trust_remote_code,
        **{key: value for key, value in outliers.items() if value is not None},
    )
    app = serving.create_app(manager, settings)
    if ui:
        mount(app, serving.info(manager, app.state.engine, settings), server.own_url(listener), settings)
    server.run(app, listener, shutdown_seconds)
