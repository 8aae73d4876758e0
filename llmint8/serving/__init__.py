"""A server with OpenAI's API: `llmint8 serve`. Routes and the reading of requests are transformers', the rest is ours.

    manager = Int8ModelManager("path/of/a/model")
    app = create_app(manager, Settings(api_key="..."))

The extra `serve` has what it needs.
"""

_NEEDED = ("fastapi", "openai", "prometheus_client", "pydantic", "uvicorn")


def _check_installed() -> None:
    from importlib.util import find_spec

    if missing := [name for name in _NEEDED if find_spec(name) is None]:
        raise ModuleNotFoundError(f"serving needs {', '.join(missing)}: pip install llmint8[serve]", name=missing[0])


_check_installed()

from llmint8.serving.app import create_app, info  # noqa: E402
from llmint8.serving.model_manager import Int8ModelManager  # noqa: E402
from llmint8.serving.settings import Settings  # noqa: E402

__all__ = ["Int8ModelManager", "Settings", "create_app", "info"]
