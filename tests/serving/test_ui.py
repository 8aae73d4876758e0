"""The page, in a browser without a window."""

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("gradio")
webdriver = pytest.importorskip("selenium.webdriver")
BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
needs_browser = pytest.mark.skipif(not BROWSER or not DRIVER, reason="chromium and chromedriver are not installed")
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
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return found


@needs_browser
def test_ask_stop_and_change_a_setting(browser: Any, make_ui: Callable[..., Any], tmp_path: Path) -> None:
    page = make_ui()
    find = browser.find_elements
    css = "css selector"
    browser.get(page.url.removesuffix("/v1"))
    box = wait_for(lambda: find(css, "textarea[placeholder='Ask something']"))[0]
    assert "39% saved" in browser.find_element("tag name", "body").text

    def last() -> str:
        answers = find(css, "[data-testid='bot']")
        return answers[-1].text if answers else ""

    box.send_keys("What is the capital of France?\ue007")  # Enter
    wait_for(lambda: "Paris" in last())
    wait_for(lambda: "tokens/s" in browser.find_element("tag name", "body").text)

    wait_for(lambda: [b for b in find("tag name", "button") if b.text.startswith("Settings")])[0].click()
    field = wait_for(
        lambda: [f for f in find(css, "input[aria-label$='Most tokens of an answer']") if f.is_displayed()]
    )
    field[0].clear()
    field[0].send_keys("3\ue004")  # Tab
    box = next(area for area in find("tag name", "textarea") if area.is_displayed())
    box.send_keys("Count from one to ten in words.\ue007")
    wait_for(lambda: "3 tokens ·" in browser.find_element("tag name", "body").text)
    assert len(find(css, "[data-testid='bot']")) == 2
    assert len(last().split()) <= 3

    field[0].clear()
    field[0].send_keys("1000\ue004")
    box = next(area for area in find("tag name", "textarea") if area.is_displayed())
    box.send_keys("Write the numbers from 1 to 900, each on its own line.\ue007")
    begun = wait_for(lambda: last() if len(find(css, "[data-testid='bot']")) == 3 else "")
    more = wait_for(lambda: last() if len(last()) > len(begun) else "")  # it comes piece by piece
    assert more.startswith(begun[:10])
    engine = page.app.state.engine
    assert engine.running == 1
    wait_for(lambda: [b for b in find(css, "button.stop-button") if b.is_displayed()])[0].click()
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
