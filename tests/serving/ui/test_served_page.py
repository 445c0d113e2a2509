"""The page of a server in Chromium: its decisions are the API's, and those of examples.json under attack."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from robust_export.serving.logs import LOGGER
from tests.serving.servers import TIMEOUT, App, serve_in_thread
from tests.serving.ui import examples
from tests.serving.ui.browser import Tab


@contextmanager
def serve(*bundles: Path, **settings: Any) -> Iterator[str]:
    """Serve bundles in a thread; yield the page's URL."""
    app = App(*bundles, **settings)
    with serve_in_thread(app.app) as (host, port):
        yield f"http://{host}:{port}"
    app.close()


@pytest.fixture(scope="module")
def url(with_examples: Path, net: Path) -> Iterator[str]:
    with serve(with_examples, net) as page_url:
        yield page_url


@pytest.fixture
def page(browser: Tab, url: str) -> Iterator[Tab]:
    """The idle page. Afterwards: nothing came from other hosts, and the browser reported no errors."""
    browser.requests.clear()
    browser.messages.clear()
    browser.open(url)
    yield browser
    assert browser.js("document.body.dataset.state") == "ready"
    assert [request for request in browser.requests if not request.startswith((url, "data:"))] == []
    assert browser.messages == []


def infer(url: str, file: Path, model: str = "tiny") -> dict[str, Any]:
    """Return the API's outputs for an image file, by name."""
    text = base64.b64encode(file.read_bytes()).decode()
    request = {
        "inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": [text]}],
        "outputs": [{"name": name} for name in ("labels", "logits", "probabilities")],
    }
    response = httpx.post(f"{url}/v2/models/{model}/infer", json=request, timeout=TIMEOUT, trust_env=False)
    return {output["name"]: output["data"] for output in response.json()["outputs"]}


def test_dropped_image_gets_the_decision_of_the_api(page: Tab, url: str, tmp_path: Path) -> None:
    for seed in range(3):
        file = examples.noise_png(tmp_path, seed=seed)
        page.drop("#drop", file)
        outputs = infer(url, file)
        logits = np.sort(outputs["logits"])[::-1]
        assert page.text("decision") == outputs["labels"][0]
        assert float(page.text("margin")) == pytest.approx(logits[0] - logits[1], abs=0.006)
        assert page.js("JSON.parse(document.getElementById('result').dataset.logits)") == outputs["logits"]
        shares = [
            float(value)
            for value in page.js(
                "[...document.querySelectorAll('.percent')].map(e => parseFloat(e.textContent))"
            )
        ]
        np.testing.assert_allclose(shares, 100 * np.sort(outputs["probabilities"])[::-1][:5], atol=0.051)
        widths = page.js("[...document.querySelectorAll('#bars i')].map(e => parseFloat(e.style.width))")
        np.testing.assert_allclose(widths, shares, atol=0.06)
        assert page.js("document.getElementById('attack').hidden")


def drag(page: Tab, steps: int) -> Iterator[int]:
    """Drag the slider from left to right; yield its value after each step."""
    x, y, width = page.centre("#eps")
    thumb = 16.0  # CSS pixels; its centre stays half of it away from the ends
    left = x - width / 2 + thumb / 2
    page.mouse("mousePressed", left, y)
    for step in range(steps + 1):
        page.mouse("mouseMoved", left + step * (width - thumb) / steps, y)
        yield int(page.js("Number(document.getElementById('eps').value)"))
    page.mouse("mouseReleased", left + width - thumb, y)


def test_slider_shows_the_decisions_of_the_file(page: Tab, content: dict[str, Any]) -> None:
    weakest = sorted(range(6), key=lambda i: examples.values(content, i, "margin")[-1])[:3]
    assert examples.values(content, weakest[0], "margin")[-1] < 0
    for i in weakest:
        page.click(f"#thumbs button:nth-child({i + 1})")
        page.wait_until_idle()
        correct = content["labels"][content["images"][i]["label"]]
        decisions = [content["labels"][k] for k in examples.values(content, i, "decision")]
        seen = []
        for step, value in enumerate(drag(page, len(content["radii"]))):
            assert value == step
            seen.append(page.text("decision"))
            verdict = ("ROBUST" if step else "CORRECT") if decisions[step] == correct else "BROKEN"
            assert page.text("verdict") == verdict
            bar = page.js("document.querySelector('#chart .selected').className.baseVal")
            assert bar == ("robust selected" if decisions[step] == correct else "broken selected")
        assert seen == decisions


def test_model_input_is_the_adversarial_example(page: Tab, content: dict[str, Any]) -> None:
    page.click("#thumbs button:nth-child(2)")
    page.wait_until_idle()
    list(drag(page, len(content["radii"])))
    rgba = page.js(
        "[...document.getElementById('adversarial').getContext('2d').getImageData(0, 0, 8, 8).data]"
    )
    seen = np.array(rgba).reshape(8, 8, 4)[:, :, :3].transpose(2, 0, 1)
    np.testing.assert_allclose(seen / 255, examples.inputs(content, 1)[-1], atol=0.51 / 255)


def test_model_can_be_changed(page: Tab, url: str, tmp_path: Path) -> None:
    page.js(
        "document.getElementById('model').value = 'net',"
        "document.getElementById('model').dispatchEvent(new Event('change'))"
    )
    page.wait_until_idle()
    assert "robust-export page --model net" in page.text("no-examples").replace("\n", " ")
    assert page.js("document.getElementById('samples').hidden")
    file = examples.noise_png(tmp_path, mode="RGBA")
    page.drop("#drop", file)
    assert page.text("decision") == infer(url, file, "net")["labels"][0]


def test_unreadable_image_is_reported(page: Tab, url: str, tmp_path: Path) -> None:
    bad = tmp_path / "words.png"
    bad.write_text("words")
    page.drop("#drop", bad)
    assert page.js("document.body.dataset.state") == "error"
    assert "words.png is not an image" in page.text("error")
    file = examples.noise_png(tmp_path)
    page.drop("#drop", file)
    assert page.text("error") == ""
    assert page.text("decision") == infer(url, file)["labels"][0]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_fits_a_phone(browser: Tab, url: str, scheme: str) -> None:
    browser.open(url, 360, 800, scheme)
    assert browser.js("document.documentElement.scrollWidth") == 360
    color = browser.js("getComputedStyle(document.body).backgroundColor")
    assert color == ("rgb(19, 22, 26)" if scheme == "dark" else "rgb(255, 255, 255)")


def test_page_asks_for_the_api_key(
    browser: Tab, with_examples: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", LOGGER)
    with serve(with_examples, api_key="open-sesame") as url:
        browser.open(url)
        for key, state in (("wrong", "key"), ("open-sesame", "ready")):
            assert browser.js("document.body.dataset.state") == "key"
            assert browser.js("document.getElementById('main').hidden")
            browser.click("#key")
            browser.call("Input.insertText", text=key)
            browser.js("document.body.dataset.state = 'busy'")
            browser.click("#entry button")
            browser.wait_until_idle()
            assert browser.js("document.body.dataset.state") == state
            assert ("does not accept" in browser.text("error")) == (key == "wrong")
        assert browser.text("verdict") == "CORRECT"
        assert browser.js("[localStorage.length, sessionStorage.length, document.cookie]") == [0, 0, ""]
        browser.open(url)
        assert browser.js("document.body.dataset.state") == "key"
    logged = [record.__dict__ for record in caplog.records if record.name == LOGGER]
    assert any(record["facts"].get("status") == 401 for record in logged)
    assert "open-sesame" not in str(logged)
