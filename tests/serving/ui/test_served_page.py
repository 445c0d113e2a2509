"""The page of a real server in a real browser: it decides as the API does, and breaks where the file says."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from robust_export.runtimes.remote import API_KEY_VARIABLE
from tests.serving.servers import LONG, Server, start
from tests.serving.ui import examples
from tests.serving.ui.browser import Tab, find_browser, tab


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    find_browser()
    with tab(tmp_path_factory.mktemp("browser")) as page:
        yield page


@pytest.fixture(scope="module")
def server(shown: Path, net: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with start(tmp_path_factory.mktemp("server"), "--model", shown, "--model", net) as running:
        yield running


@pytest.fixture
def page(browser: Tab, server: Server) -> Iterator[Tab]:
    """The page, at rest; at the end nothing was asked for elsewhere, and the browser had nothing to say."""
    browser.asked.clear()
    browser.complaints.clear()
    browser.open(server.rest)
    yield browser
    assert browser.js("document.body.dataset.state") == "ready"
    assert [one for one in browser.asked if not one.startswith((server.rest, "data:"))] == []
    assert browser.complaints == []


def ask(server: Server, file: Path, model: str = "tiny") -> dict[str, Any]:
    """Return the API's answer to an image, by output."""
    text = base64.b64encode(file.read_bytes()).decode()
    request = {
        "inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": [text]}],
        "outputs": [{"name": name} for name in ("labels", "logits", "probabilities")],
    }
    answer = httpx.post(f"{server.rest}/v2/models/{model}/infer", json=request, timeout=LONG, trust_env=False)
    return {output["name"]: output["data"] for output in answer.json()["outputs"]}


@pytest.mark.parametrize("seed", range(3))
def test_a_dropped_image_is_decided_as_the_api_decides(
    page: Tab, server: Server, tmp_path: Path, seed: int
) -> None:
    file = examples.a_photo(tmp_path, seed=seed)
    page.drop("#drop", file)
    truth = ask(server, file)
    logits = np.sort(truth["logits"])[::-1]
    assert page.text("decision") == truth["labels"][0]
    assert float(page.text("margin")) == pytest.approx(logits[0] - logits[1], abs=0.006)
    assert page.js("JSON.parse(document.getElementById('answer').dataset.logits)") == truth["logits"]
    shares = [
        float(one)
        for one in page.js("[...document.querySelectorAll('.share')].map(e => parseFloat(e.textContent))")
    ]
    np.testing.assert_allclose(shares, 100 * np.sort(truth["probabilities"])[::-1][:5], atol=0.051)
    widths = page.js("[...document.querySelectorAll('#bars i')].map(e => parseFloat(e.style.width))")
    np.testing.assert_allclose(widths, shares, atol=0.06)
    assert page.js("document.getElementById('attack').hidden")


def drag(page: Tab, steps: int) -> Iterator[int]:
    """Drag the slider from its left end to its right, and give each place that it comes to."""
    x, y, width = page.middle("#eps")
    thumb = 16.0  # CSS pixels; its middle cannot come nearer to an end than half of it
    left = x - width / 2 + thumb / 2
    page.mouse("mousePressed", left, y)
    for step in range(steps + 1):
        page.mouse("mouseMoved", left + step * (width - thumb) / steps, y)
        yield int(page.js("Number(document.getElementById('eps').value)"))
    page.mouse("mouseReleased", left + width - thumb, y)


def test_the_slider_breaks_the_decision_where_the_file_says(page: Tab, found: dict[str, Any]) -> None:
    for i in range(len(found["images"])):
        page.click(f"#thumbs button:nth-child({i + 1})")
        page.rests()
        right = found["labels"][found["images"][i]["label"]]
        decisions = [found["labels"][k] for k in examples.said(found, i, "decision")]
        seen = []
        for step, place in enumerate(drag(page, len(found["radii"]))):
            assert place == step
            seen.append(page.text("decision"))
            assert page.text("verdict") == ("HOLDS" if decisions[step] == right else "BROKEN")
            bar = page.js("document.querySelector('#chart .now').className.baseVal")
            assert bar == ("holds now" if decisions[step] == right else "breaks now")
        assert seen == decisions
    assert any(found["images"][i]["attacks"][-1]["margin"] < 0 for i in range(len(found["images"])))


def test_the_model_is_given_what_the_file_says(page: Tab, found: dict[str, Any]) -> None:
    page.click("#thumbs button:nth-child(2)")
    page.rests()
    list(drag(page, len(found["radii"])))
    rgba = page.js("[...document.getElementById('after').getContext('2d').getImageData(0, 0, 8, 8).data]")
    seen = np.array(rgba).reshape(8, 8, 4)[:, :, :3].transpose(2, 0, 1)
    np.testing.assert_allclose(seen / 255, examples.inputs(found, 1)[-1], atol=0.51 / 255)


def test_another_model(page: Tab, server: Server, tmp_path: Path) -> None:
    page.js(
        "document.getElementById('model').value = 'net',"
        "document.getElementById('model').dispatchEvent(new Event('change'))"
    )
    page.rests()
    assert "robust-export page --model net" in page.text("without").replace("\n", " ")
    assert page.js("document.getElementById('samples').hidden")
    file = examples.a_photo(tmp_path, mode="RGBA")
    page.drop("#drop", file)
    assert page.text("decision") == ask(server, file, "net")["labels"][0]


def test_what_is_no_image_is_said_and_the_next_one_is_read(page: Tab, server: Server, tmp_path: Path) -> None:
    bad = tmp_path / "words.png"
    bad.write_text("words")
    page.drop("#drop", bad)
    assert page.js("document.body.dataset.state") == "error"
    assert "words.png is no image" in page.text("error")
    file = examples.a_photo(tmp_path)
    page.drop("#drop", file)
    assert page.text("error") == ""
    assert page.text("decision") == ask(server, file)["labels"][0]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_a_telephone(browser: Tab, server: Server, scheme: str) -> None:
    browser.open(server.rest, 360, 800, scheme)
    assert browser.js("document.documentElement.scrollWidth") == 360
    color = browser.js("getComputedStyle(document.body).backgroundColor")
    assert color == ("rgb(19, 22, 26)" if scheme == "dark" else "rgb(255, 255, 255)")


def test_a_server_with_a_key(browser: Tab, shown: Path, tmp_path: Path) -> None:
    with start(tmp_path, "--model", shown, env={API_KEY_VARIABLE: "open-sesame"}) as server:
        browser.open(server.rest)
        for key, state in (("guess", "key"), ("open-sesame", "ready")):
            assert browser.js("document.body.dataset.state") == "key"
            assert browser.js("document.getElementById('main').hidden")
            browser.click("#key")
            browser.call("Input.insertText", text=key)
            browser.js("document.body.dataset.state = 'busy'")
            browser.click("#entry button")
            browser.rests()
            assert browser.js("document.body.dataset.state") == state
            assert ("does not take" in browser.text("error")) == (key == "guess")
        assert browser.text("verdict") == "HOLDS"
        assert browser.js("[localStorage.length, sessionStorage.length, document.cookie]") == [0, 0, ""]
        browser.open(server.rest)
        assert browser.js("document.body.dataset.state") == "key"
        assert "open-sesame" not in json.dumps(server.log())
