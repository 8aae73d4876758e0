"""The application: routes of transformers' server, with one model, our engine and handlers, and a gate before them."""

from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response
from transformers.cli.serving.server import build_server
from transformers.cli.serving.utils import GenerationState

from llmint8._version import __version__
from llmint8.generation.engine import Engine
from llmint8.serving import metrics, request_log
from llmint8.serving.errors import handle_errors
from llmint8.serving.gate import OPEN, Gate
from llmint8.serving.handlers import ChatHandler, TextHandler
from llmint8.serving.lifecycle import Lifecycle
from llmint8.serving.model_manager import Int8ModelManager
from llmint8.serving.prompts import Prompts
from llmint8.serving.record import Record
from llmint8.serving.settings import Settings

# Of transformers' routes, those that one fixed model has a use for; `/reset` would unload it.
_OF_TRANSFORMERS = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/models", "/health"})
_PATHS = _OF_TRANSFORMERS | {"/info", "/metrics"}


class _State(GenerationState):
    """What `/health` asks."""

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self._engine = engine

    def is_cb_alive(self) -> bool:
        return self._engine.is_alive()


def create_app(manager: Int8ModelManager, settings: Settings | None = None) -> FastAPI:
    """Builds the application, for uvicorn or to mount a page beside the API.

    Args:
        manager: Has loaded the model.
        settings: Key and limits; none and the defaults if None.

    Returns:
        An application with `state.engine`, `state.manager` and `state.lifecycle`, by which a server ends it.
    """
    settings = settings or Settings()
    engine = Engine(manager.model, manager.tokenizer, slots=settings.slots, max_queue=settings.max_queue)
    state = _State(engine)
    prompts, lifecycle = Prompts(engine), Lifecycle()
    chat = ChatHandler(manager, state, engine, settings, prompts, lifecycle)
    text = TextHandler(manager, state, engine, settings, prompts, lifecycle)
    none: Any = None  # of endpoints whose routes are taken out
    app: FastAPI = build_server(manager, chat, text, none, none, none, state)
    app.router.routes[:] = [route for route in app.routes if getattr(route, "path", "") in _OF_TRANSFORMERS]
    for route in app.routes:
        if getattr(route, "path", "") == OPEN:
            route.methods.add("HEAD")  # type: ignore[attr-defined]  # what load balancers ask
    app.user_middleware.clear()  # it names requests, at a price for each token of a stream; the gate does that
    app.state.engine, app.state.manager, app.state.lifecycle = engine, manager, lifecycle
    counts = metrics.Metrics(engine, _PATHS)

    @app.get("/v1/models/{model:path}")
    def show_model(model: str) -> JSONResponse:
        manager.check_name(model)
        return JSONResponse(manager.list_models()[0])

    @app.get("/metrics")
    def show_metrics() -> Response:
        return Response(counts.text(), media_type=metrics.CONTENT_TYPE)

    @app.get("/info")
    def show_info() -> JSONResponse:
        return JSONResponse(info(manager, engine, settings))

    def done(record: Record) -> None:
        counts.count(record)
        request_log.write(record)

    handle_errors(app)
    app.add_middleware(Gate, settings=settings, guarded=_is_guarded, lifecycle=lifecycle, done=done)
    return app


def _is_guarded(path: str) -> bool:
    return path in _PATHS or path.startswith("/v1/")


def info(manager: Int8ModelManager, engine: Engine, settings: Settings) -> dict[str, Any]:
    """Returns what a page shows of the model and its limits, ready for JSON; sizes are in bytes.

    Args:
        manager: Has loaded the model.
        engine: Generates.
        settings: Limits.
    """
    int8, unquantized = manager.weights()
    generation = manager.model.generation_config
    return {
        "model": manager.name,
        "architecture": type(manager.model).__name__,
        "version": __version__,
        "device": str(manager.model.device),
        "dtype": str(manager.model.dtype).removeprefix("torch."),
        "weights_bytes": int8,
        "unquantized_weights_bytes": unquantized,
        "continuous_batching": engine.slots > 1,
        "slots": engine.slots,
        "tokens_read_at_a_time": engine.piece,
        "running": engine.running,
        "waiting": engine.waiting,
        "temperature": (generation.temperature or 1.0) if generation.do_sample else 0.0,
        "top_p": generation.top_p or 1.0,
        "max_tokens": settings.max_tokens,
        "max_prompt_tokens": settings.max_prompt_tokens,
    }
