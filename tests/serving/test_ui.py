"""The page, in a browser without a window."""

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

pytest.importorskip("gradio")
webdriver = pytest.importorskip("selenium.webdriver")
exceptions = pytest.importorskip("selenium.common.exceptions")

pytestmark = pytest.mark.slow
BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
needs_browser = pytest.mark.skipif(not BROWSER or not DRIVER, reason="chromium and chromedriver are not installed")
ENTER, TAB = "\ue007", "\ue004"  # as WebDriver names keys
# No sandbox, since containers have root only; and nothing that asks other machines.
ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for argument in (*ARGUMENTS, f"--user-data-dir={tmp_path_factory.mktemp('browser')}", "--window-size=1200,1000"):
        options.add_argument(argument)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


def wait_for(what: Callable[[], Any], seconds: float = 60) -> Any:
    """Waits until something is there; the page may replace what has just been found."""
    end = time.monotonic() + seconds
    while True:
        with contextlib.suppress(exceptions.StaleElementReferenceException):
            if found := what():
                return found
        assert time.monotonic() < end
        time.sleep(0.02)


class Page:
    """What a person does on the page."""

    def __init__(self, browser: Any) -> None:
        self.browser = browser

    def shown(self, selector: str) -> list[Any]:
        return [found for found in self.browser.find_elements("css selector", selector) if found.is_displayed()]

    def on_first(self, selector: str, act: Callable[[Any], None]) -> None:
        """Does something with the first that a selector finds."""

        def attempt() -> bool:
            found = self.shown(selector)
            if found:
                act(found[0])
            return bool(found)

        wait_for(attempt)

    def text(self) -> str:
        return str(self.browser.find_element("tag name", "body").text)

    def answers(self) -> list[str]:
        return [answer.text for answer in self.browser.find_elements("css selector", "[data-testid='bot']")]

    def ask(self, question: str) -> int:
        """Asks, and returns the place of the answer among all answers."""
        place = len(self.answers())
        box = "#question textarea"
        self.on_first(box, lambda found: (found.clear(), found.send_keys(question)))  # again, if it was replaced
        wait_for(lambda: [found for found in self.shown(box) if found.get_attribute("value") == question])
        self.on_first(box, lambda found: found.send_keys(ENTER))
        return place

    def answer(self, place: int) -> str:
        answers = self.answers()
        return answers[place] if len(answers) > place else ""

    def allow(self, tokens: int) -> None:
        """Changes the setting of the longest answer."""
        field = "input[aria-label$='Most tokens of an answer']"

        def change(found: Any) -> None:
            found.clear()
            found.send_keys(f"{tokens}{TAB}")

        self.on_first(field, change)
        wait_for(lambda: [found for found in self.shown(field) if found.get_attribute("value") == str(tokens)])


@needs_browser
def test_ask_stop_and_change_a_setting(browser: Any, make_ui: Callable[..., Any]) -> None:
    served = make_ui()
    page = Page(browser)
    browser.get(served.url.removesuffix("/v1"))
    wait_for(lambda: page.shown("#question textarea"))
    assert "39% saved" in page.text()

    first = page.ask("What is the capital of France?")
    wait_for(lambda: "Paris" in page.answer(first))
    wait_for(lambda: "tokens/s" in page.text())

    page.on_first("button.label-wrap", lambda found: found.click())  # the settings
    page.allow(3)
    second = page.ask("Count from one to ten in words.")
    wait_for(lambda: "3 tokens ·" in page.text())
    assert len(page.answers()) == second + 1
    assert len(page.answer(second).split()) <= 3

    page.allow(1000)
    third = page.ask("Write a long story about a dog that travels around the world.")
    begun = wait_for(lambda: page.answer(third))
    more = wait_for(lambda: page.answer(third) if len(page.answer(third)) > len(begun) else "")  # piece by piece
    assert more.startswith(begun[:10])
    engine = served.app.state.engine
    assert engine.running == 1
    page.on_first("button.stop-button", lambda found: found.click())
    wait_for(lambda: engine.running == 0, 5)


def test_whoever_opens_the_page_needs_the_key(make_ui: Callable[..., Any]) -> None:
    address = make_ui(api_key="a secret").url.removesuffix("/v1")
    with httpx.Client(base_url=address) as client:
        assert client.get("/").headers["location"] == "ui"
        assert client.get("/ui/config").status_code == 401
        assert client.post("/ui/login", data={"username": "me", "password": "wrong"}).status_code == 400
        form: Any = {"username": (None, "me"), "password": (None, "a secret")}  # as browsers send it
        assert client.post("/ui/login", files=form).status_code == 200
        assert client.get("/ui/config").status_code == 200
        assert client.get("/v1/models").status_code == 401
        missing = client.get("/v1/nothing", headers={"Authorization": "Bearer a secret"})
        assert missing.status_code == 404
        assert missing.json()["error"]["type"]


def test_the_page_takes_no_files(make_ui: Callable[..., Any]) -> None:
    address = make_ui(max_body=1000).url.removesuffix("/v1")
    files = {"files": ("name.txt", b"text")}
    with httpx.Client(base_url=address) as client:
        assert client.get("/ui/config").status_code == 200
        for path in ("upload", "upload?upload_id=1", "component_server", "process_recording"):
            response = client.post(f"/ui/gradio_api/{path}", files=files)
            assert response.status_code == 404, path
            assert response.json()["error"]["message"] == "the page takes no uploads"
        assert client.post("/ui/gradio_api/queue/join", json={"data": ["x" * 1000]}).status_code == 413
        pieces = client.post("/ui/gradio_api/queue/join", content=iter([b"{}"]))
        assert pieces.status_code == 411


def test_what_the_page_refuses_is_read_to_the_end(make_ui: Callable[..., Any]) -> None:
    url = f"{make_ui(max_body=1000).url.removesuffix('/v1')}/ui/gradio_api/queue/join"
    for _ in range(5):  # what is left unread resets the connection, sooner or later
        assert httpx.post(url, content=b"x" * 5_000_000).status_code == 413
