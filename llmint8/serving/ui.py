"""A page to chat on, beside the API and a client of it like any other: the limits of the queue and of texts hold."""

import hmac
import importlib.util
import os
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from fastapi.responses import RedirectResponse

from llmint8.serving.page_gate import PATH, PageGate
from llmint8.serving.settings import Settings

if TYPE_CHECKING:
    import gradio

_EXAMPLES = [
    "What is the capital of France?",
    "Explain photosynthesis in two sentences.",
    "Write a short poem about the sea.",
]
_MOST_TOKENS = 512
# The page asks nobody else for fonts.
_FONTS = ["system-ui", "sans-serif"]


def check_installed() -> None:
    """Checks that Gradio is there.

    Raises:
        ModuleNotFoundError: It is not.
    """
    if importlib.util.find_spec("gradio") is None:
        raise ModuleNotFoundError("the page needs gradio: pip install llmint8[ui]", name="gradio")


def mount(app: FastAPI, info: dict[str, Any], address: str, settings: Settings) -> FastAPI:
    """Puts the page at `/ui` of a server, and sends there who comes to `/`.

    Where the API has a key, the page asks for it: whoever can use the page can use the model.

    Args:
        app: What `create_app` returned.
        info: What `info` returned.
        address: Address of the API, as its clients on this machine write it.
        settings: Key and limits of the server.

    Returns:
        The application to serve.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    import gradio

    key = settings.api_key

    def knows_the_key(_: str, password: str) -> bool:
        return hmac.compare_digest(password.encode(), (key or "").encode())

    @app.get("/", include_in_schema=False)
    def to_page() -> RedirectResponse:
        return RedirectResponse(PATH.lstrip("/"))

    app.add_middleware(PageGate, max_body=settings.max_body, lifecycle=app.state.lifecycle)
    theme = gradio.themes.Default(font=_FONTS, font_mono=["ui-monospace", "monospace"])
    return gradio.mount_gradio_app(
        app,
        page(info, address, settings),
        path=PATH,
        auth=None if key is None else knows_the_key,
        auth_message=None if key is None else "Any name, and the API key as the password.",
        theme=theme,
        footer_links=[],
        show_error=True,
        ssr_mode=False,
    )


def page(info: dict[str, Any], address: str, settings: Settings) -> "gradio.Blocks":
    """Builds the page.

    Args:
        info: What the server says of its model.
        address: Address of its API.
        settings: Its key and limits.
    """
    import gradio
    from openai import APIError, AsyncOpenAI

    client = AsyncOpenAI(base_url=address, api_key=settings.api_key or "none", max_retries=0)

    async def answer(
        message: str, history: list[dict[str, Any]], system: str, temperature: float, top_p: float, most: float
    ) -> AsyncIterator[tuple[str, str]]:
        beginning = [{"role": "system", "content": system}] if system.strip() else []
        said = [{"role": turn["role"], "content": _text(turn["content"])} for turn in history]
        messages: Any = [*beginning, *said, {"role": "user", "content": message}]
        start, first, text, tokens = time.perf_counter(), 0.0, "", 0
        try:
            stream = await client.chat.completions.create(
                model=info["model"],
                messages=messages,
                temperature=temperature,
                top_p=top_p,
                max_tokens=int(most),
                stream=True,
                stream_options={"include_usage": True},
            )
            async with stream:  # closed if the answer is stopped, which frees its place on the server
                async for chunk in stream:
                    now = time.perf_counter() - start
                    if chunk.usage is not None:
                        tokens = chunk.usage.completion_tokens
                    if chunk.choices and chunk.choices[0].delta.content:
                        first = first or now
                        text += chunk.choices[0].delta.content
                        yield text, f"first token after {first:.2f} s"
        except APIError as error:
            raise gradio.Error(error.message) from error
        seconds = time.perf_counter() - start
        rate = f" · {(tokens - 1) / (seconds - first):.1f} tokens/s" if tokens > 1 and seconds > first else ""
        yield text, f"{tokens} tokens{rate} · first token after {first:.2f} s"

    # Gradio would show what is made inside the page at the place where it is made.
    choices = [
        gradio.Textbox("", label="System prompt", info="What the model is told beforehand", lines=2, render=False),
        gradio.Slider(
            0,
            2,
            value=info["temperature"],
            step=0.05,
            label="Temperature",
            info="0 takes the most likely token",
            render=False,
        ),
        gradio.Slider(0.05, 1, value=info["top_p"], step=0.05, label="Top p", render=False),
        gradio.Slider(
            1,
            settings.max_tokens,
            value=min(_MOST_TOKENS, settings.max_tokens),
            step=1,
            label="Most tokens of an answer",
            render=False,
        ),
    ]
    accordion = gradio.Accordion("Settings", open=False, render=False)
    chatbot = gradio.Chatbot(show_label=False, buttons=["copy"], scale=1, render=False)
    textbox = gradio.Textbox(
        elem_id="question", placeholder="Ask something", submit_btn=True, stop_btn=True, show_label=False, render=False
    )
    status = gradio.Markdown("", render=False)
    with gradio.Blocks(title=f"{info['model']} · llmint8", fill_height=True) as blocks:
        gradio.Markdown(f"## {info['model']} in 8 bit\n{saved(info)}")
        gradio.ChatInterface(
            answer,
            chatbot=chatbot,
            textbox=textbox,
            additional_inputs=choices,
            additional_inputs_accordion=accordion,
            additional_outputs=[status],
            examples=[[example] for example in _EXAMPLES],
            cache_examples=False,
            api_visibility="private",
            concurrency_limit=None,  # the server queues
            fill_height=True,
        )
        status.render()
    return blocks


def saved(info: dict[str, Any]) -> str:
    """Returns a sentence on the memory of the weights.

    Args:
        info: What the server says of its model.
    """
    now, before = info["weights_bytes"], info["unquantized_weights_bytes"]
    return (
        f"{now / 1e9:.2f} GB of weights instead of {before / 1e9:.2f} GB in {info['dtype']}: "
        f"**{1 - now / before:.0%} saved**. Runs on {info['device']}."
    )


def _text(content: Any) -> str:
    """The text of a turn, which Gradio gives as a string or as a list of parts."""
    if isinstance(content, str):
        return content
    return "".join(part if isinstance(part, str) else part.get("text", "") for part in content)
