"""The static copy of the page on a plain file server: the browser computes ONNX Runtime's logits."""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from robust_export.bundle import Bundle
from robust_export.cli import cli
from robust_export.data.image_files import open_image, to_bytes
from robust_export.errors import BuildError, BundleError
from robust_export.runtimes.onnxruntime import OnnxRuntimeClassifier
from robust_export.serving.ui.ort_web import FILES, WebRuntime, find_runtime
from robust_export.serving.ui.static_copy import write_copy
from tests.serving.ui import examples
from tests.serving.ui.browser import Tab

EMPTY_RUNTIME = WebRuntime(dict.fromkeys(FILES, b""), "empty")


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def runtime() -> WebRuntime:
    """onnxruntime-web from npm, kept in the cache."""
    try:
        return find_runtime()
    except BuildError as error:
        pytest.skip(f"not run: {error}")


@pytest.fixture(scope="module")
def copy(with_examples: Path, runtime: WebRuntime, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("copy")
    write_copy(Bundle.open(with_examples), folder, runtime)
    return folder


@pytest.fixture(scope="module")
def url(copy: Path) -> Iterator[str]:
    """A file server that serves the copy in a subfolder."""
    handler = functools.partial(QuietHandler, directory=str(copy.parent))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/{copy.name}/"
        server.shutdown()
        thread.join()


def test_copy_opened_as_a_file_asks_for_a_web_server(browser: Tab, copy: Path) -> None:
    browser.open((copy / "index.html").as_uri())
    assert browser.js("document.body.dataset.state") == "error"
    assert "http.server" in browser.text("error")


@pytest.fixture(scope="module")
def page(browser: Tab, url: str) -> Iterator[Tab]:
    """The copy, opened. Afterwards: nothing came from other hosts, and the browser reported no errors."""
    browser.requests.clear()
    browser.messages.clear()
    browser.open(url)
    assert browser.js("document.body.dataset.state") == "ready", browser.text("error")
    yield browser
    assert [request for request in browser.requests if not request.startswith((url, "data:"))] == []
    hint = "willReadFrequently"  # caused by these tests, which read the canvases
    assert [message for message in browser.messages if hint not in message] == []


def logits(page: Tab) -> Any:
    return np.array(page.js("JSON.parse(document.getElementById('result').dataset.logits)"))


def test_browser_computes_the_logits_of_onnx_runtime(
    page: Tab, with_examples: Path, content: dict[str, Any]
) -> None:
    classifier = OnnxRuntimeClassifier(with_examples / "model.onnx")
    page.click("#thumbs button:nth-child(1)")
    page.wait_until_idle()
    for i, expected in enumerate(classifier(examples.inputs(content, 0))):
        page.js(
            f"document.getElementById('eps').value = {i},"
            "document.getElementById('eps').dispatchEvent(new Event('input'))"
        )
        np.testing.assert_allclose(logits(page), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "mode"),
    [
        ((31, 20), "RGB"), ((20, 31), "RGB"), ((5, 4), "RGB"), ((8, 8), "RGB"), ((300, 211), "L"),
        ((9, 16), "RGB"),
    ],
)  # fmt: skip
def test_dropped_image_is_resized_as_by_pillow(
    page: Tab, with_examples: Path, tmp_path: Path, size: tuple[int, int], mode: str
) -> None:
    file = examples.noise_png(tmp_path, size, mode)
    page.drop("#drop", file)
    rgba = page.js("[...document.getElementById('input').getContext('2d').getImageData(0, 0, 8, 8).data]")
    seen = np.array(rgba, np.uint8).reshape(8, 8, 4)[:, :, :3].transpose(2, 0, 1)
    difference = np.abs(seen.astype(int) - to_bytes(open_image(file), 8, 3))
    assert difference.max() <= (1 if size[1] > size[0] else 0)
    pixels = (seen[None] / np.float32(255)).astype(np.float32)
    expected = OnnxRuntimeClassifier(with_examples / "model.onnx")(pixels)[0]
    np.testing.assert_allclose(logits(page), expected, rtol=0, atol=1e-5)
    assert page.text("decision") == Bundle.open(with_examples).labels[int(expected.argmax())]


def test_copy_is_complete(with_examples: Path, tmp_path: Path) -> None:
    written = write_copy(Bundle.open(with_examples), tmp_path, EMPTY_RUNTIME)
    assert written[-1] == tmp_path / "index.html"
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*")} == {
        "index.html", "model.onnx", "examples.json", *(f"onnxruntime-web/{name}" for name in FILES)
    }  # fmt: skip
    assert (tmp_path / "model.onnx").read_bytes() == (with_examples / "model.onnx").read_bytes()


def test_copy_without_examples_or_model(trained: Path, bundle: Bundle, tmp_path: Path) -> None:
    write_copy(Bundle.open(trained), tmp_path / "copy", EMPTY_RUNTIME)
    assert not (tmp_path / "copy/examples.json").exists()
    assert "examplesFile" not in (tmp_path / "copy/index.html").read_text().split('id="config">')[1][:500]
    del bundle.manifest["files"]["model.onnx"]
    with pytest.raises(BundleError, match="robust-export onnx"):
        write_copy(bundle, tmp_path / "none", EMPTY_RUNTIME)


def write_package(folder: Path) -> Path:
    """Write the files of the npm package."""
    (folder / "dist").mkdir(parents=True)
    for name in FILES:
        (folder / "dist" / name).write_text(name)
    (folder / "package.json").write_text('{"name": "onnxruntime-web", "version": "9.9.9"}')
    return folder


@pytest.mark.parametrize("subfolder", ["", "onnxruntime-web", "node_modules/onnxruntime-web"])
def test_runtime_is_found_in_a_folder(tmp_path: Path, subfolder: str) -> None:
    write_package(tmp_path / subfolder)
    runtime = find_runtime(tmp_path)
    assert runtime.origin == "onnxruntime-web 9.9.9"
    assert runtime.files == {name: name.encode() for name in FILES}


def test_folder_without_the_runtime_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="npm pack onnxruntime-web@"):
        find_runtime(tmp_path)


def test_missing_npm_or_wrong_archive_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROBUST_EXPORT_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BuildError, match="npm, which fetches it, is not installed"):
        find_runtime()
    (npm := tmp_path / "npm").write_text("#!/bin/sh\necho 'npm error code ENOTFOUND' >&2\nexit 1\n")
    npm.chmod(0o755)
    with pytest.raises(BuildError, match="npm error code ENOTFOUND"):
        find_runtime()
    npm.write_text('#!/bin/sh\nwhile [ "$1" != --pack-destination ]; do shift; done\necho x > "$2/x.tgz"\n')
    with pytest.raises(BuildError, match="its digest differs"):
        find_runtime()
    assert not list(tmp_path.glob("*.tgz"))
    (tmp_path / "onnxruntime-web-1.30.0.tgz").write_bytes(b"x")
    with pytest.raises(BuildError, match="Delete it"):
        find_runtime()


def test_page_command(bundle: Bundle, tmp_path: Path) -> None:
    words = ["page", "--model", str(bundle.path), "--images", "2", "--steps", "2", "--json"]
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    assert (printed["images"], len(printed["held"]), printed["page"]) == (2, 8, None)
    before = (bundle.path / "examples.json").read_bytes()
    out, ort = tmp_path / "out", write_package(tmp_path / "ort")
    words = ["page", "--model", str(bundle.path), "--out", str(out), "--ort-web", str(ort)]
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 0, result.output
    assert "correctly classified, of 2" in result.stdout
    assert (out / "examples.json").read_bytes() == before
    result = CliRunner().invoke(cli, [*words, "--images", "3", "--steps", "2", "--json"])
    assert json.loads(result.stdout)["runtime"] == "onnxruntime-web 9.9.9"
    assert len(json.loads((out / "examples.json").read_text())["images"]) == 3
    assert (out / "index.html").is_file()


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--ort-web", "x"], 2, "give --out"),
        (["--images", "0"], 2, "images"),
        (["--steps", "0"], 2, "steps"),
        (["--eps", "much"], 2, "8/255"),
        (["--out", "out", "--ort-web", "nowhere"], 1, "nowhere lacks"),
    ],
)
def test_invalid_option_of_page(bundle: Bundle, options: list[str], code: int, words: str) -> None:
    result = CliRunner().invoke(cli, ["page", "--model", str(bundle.path), *options])
    assert result.exit_code == code
    assert words in result.stderr
    assert "Traceback" not in result.output
    assert not (bundle.path / "examples.json").exists()
