"""The copy of the page, from a plain server of files: the browser's logits are ONNX Runtime's."""

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
from robust_export.serving.ui.ort_web import FILES, WebRuntime, find
from robust_export.serving.ui.static_copy import write_copy
from tests.serving.ui import examples
from tests.serving.ui.browser import Tab, find_browser, tab

NOTHING = WebRuntime(dict.fromkeys(FILES, b""), "nothing")


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def runtime() -> WebRuntime:
    """onnxruntime-web as npm has it, kept in the cache."""
    try:
        return find()
    except BuildError as error:
        pytest.skip(f"not run: {error}")


@pytest.fixture(scope="module")
def copy(shown: Path, runtime: WebRuntime, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("copy")
    write_copy(Bundle.open(shown), folder, runtime)
    return folder


@pytest.fixture(scope="module")
def address(copy: Path) -> Iterator[str]:
    """A plain server of files, which serves the folder below another one."""
    handler = functools.partial(Quiet, directory=str(copy.parent))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/{copy.name}/"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def page(address: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    find_browser()
    with tab(tmp_path_factory.mktemp("browser")) as opened:
        opened.open(address)
        assert opened.js("document.body.dataset.state") == "ready", opened.text("error")
        yield opened
        assert [one for one in opened.asked if not one.startswith((address, "data:"))] == []
        ours = "willReadFrequently"  # a hint of the canvases that these tests read
        assert [one for one in opened.complaints if ours not in one] == []


def logits(page: Tab) -> Any:
    return np.array(page.js("JSON.parse(document.getElementById('answer').dataset.logits)"))


def test_the_browsers_logits_are_onnx_runtimes(page: Tab, shown: Path, found: dict[str, Any]) -> None:
    classifier = OnnxRuntimeClassifier(shown / "model.onnx")
    page.click("#thumbs button:nth-child(1)")
    page.rests()
    for place, truth in enumerate(classifier(examples.inputs(found, 0))):
        page.js(
            f"document.getElementById('eps').value = {place},"
            "document.getElementById('eps').dispatchEvent(new Event('input'))"
        )
        np.testing.assert_allclose(logits(page), truth, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "mode"),
    [
        ((31, 20), "RGB"), ((20, 31), "RGB"), ((5, 4), "RGB"), ((8, 8), "RGB"), ((300, 211), "L"),
        ((9, 16), "RGB"),
    ],
)  # fmt: skip
def test_a_dropped_image_becomes_the_pixels_that_pillow_makes(
    page: Tab, shown: Path, tmp_path: Path, size: tuple[int, int], mode: str
) -> None:
    file = examples.a_photo(tmp_path, size, mode)
    page.drop("#drop", file)
    rgba = page.js("[...document.getElementById('seen').getContext('2d').getImageData(0, 0, 8, 8).data]")
    seen = np.array(rgba, np.uint8).reshape(8, 8, 4)[:, :, :3].transpose(2, 0, 1)
    gaps = np.abs(seen.astype(int) - to_bytes(open_image(file), 8, 3))
    assert gaps.max() <= (1 if size[1] > size[0] else 0)
    pixels = (seen[None] / np.float32(255)).astype(np.float32)
    truth = OnnxRuntimeClassifier(shown / "model.onnx")(pixels)[0]
    np.testing.assert_allclose(logits(page), truth, rtol=0, atol=1e-5)
    assert page.text("decision") == Bundle.open(shown).labels[int(truth.argmax())]


def test_opened_as_a_file_it_says_what_it_needs(copy: Path, tmp_path: Path) -> None:
    find_browser()
    with tab(tmp_path) as page:
        page.open((copy / "index.html").as_uri())
        assert page.js("document.body.dataset.state") == "error"
        assert "http.server" in page.text("error")


def test_a_copy_has_all_that_the_page_names(shown: Path, tmp_path: Path) -> None:
    written = write_copy(Bundle.open(shown), tmp_path, NOTHING)
    assert written[-1] == tmp_path / "index.html"
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*")} == {
        "index.html", "model.onnx", "examples.json", *(f"onnxruntime-web/{name}" for name in FILES)
    }  # fmt: skip
    assert (tmp_path / "model.onnx").read_bytes() == (shown / "model.onnx").read_bytes()


def test_without_attacks_and_without_a_model(trained: Path, bundle: Bundle, tmp_path: Path) -> None:
    write_copy(Bundle.open(trained), tmp_path / "copy", NOTHING)
    assert not (tmp_path / "copy/examples.json").exists()
    assert "examplesFile" not in (tmp_path / "copy/index.html").read_text().split('id="config">')[1][:500]
    del bundle.manifest["files"]["model.onnx"]
    with pytest.raises(BundleError, match="robust-export onnx"):
        write_copy(bundle, tmp_path / "none", NOTHING)


def package(folder: Path) -> Path:
    """Write what npm would unpack."""
    (folder / "dist").mkdir(parents=True)
    for name in FILES:
        (folder / "dist" / name).write_text(name)
    (folder / "package.json").write_text('{"name": "onnxruntime-web", "version": "9.9.9"}')
    return folder


@pytest.mark.parametrize("place", ["", "onnxruntime-web", "node_modules/onnxruntime-web"])
def test_a_folder_that_has_the_runtime(tmp_path: Path, place: str) -> None:
    package(tmp_path / place)
    found = find(tmp_path)
    assert found.origin == "onnxruntime-web 9.9.9"
    assert found.files == {name: name.encode() for name in FILES}


def test_a_folder_that_lacks_it(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="npm pack onnxruntime-web@"):
        find(tmp_path)


def test_without_npm_and_with_another_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROBUST_EXPORT_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BuildError, match="no npm here"):
        find()
    (npm := tmp_path / "npm").write_text("#!/bin/sh\necho 'npm error code ENOTFOUND' >&2\nexit 1\n")
    npm.chmod(0o755)
    with pytest.raises(BuildError, match="npm error code ENOTFOUND"):
        find()
    npm.write_text('#!/bin/sh\nwhile [ "$1" != --pack-destination ]; do shift; done\necho x > "$2/x.tgz"\n')
    with pytest.raises(BuildError, match="its digest is another"):
        find()
    assert not list(tmp_path.glob("*.tgz"))
    (tmp_path / "onnxruntime-web-1.30.0.tgz").write_bytes(b"x")
    with pytest.raises(BuildError, match="Delete it"):
        find()


def test_the_command(bundle: Bundle, tmp_path: Path) -> None:
    words = ["page", "--model", str(bundle.path), "--images", "2", "--steps", "2", "--json"]
    ran = CliRunner().invoke(cli, words)
    assert ran.exit_code == 0, ran.output
    said = json.loads(ran.stdout)
    assert (said["images"], len(said["held"]), said["page"]) == (2, 8, None)
    before = (bundle.path / "examples.json").read_bytes()
    out, ort = tmp_path / "out", package(tmp_path / "ort")
    words = ["page", "--model", str(bundle.path), "--out", str(out), "--ort-web", str(ort)]
    ran = CliRunner().invoke(cli, words)
    assert ran.exit_code == 0, ran.output
    assert "correctly classified, of 2" in ran.stdout
    assert (out / "examples.json").read_bytes() == before
    ran = CliRunner().invoke(cli, [*words, "--images", "3", "--json"])
    assert json.loads(ran.stdout)["runtime"] == "onnxruntime-web 9.9.9"
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
def test_what_the_command_refuses(bundle: Bundle, options: list[str], code: int, words: str) -> None:
    ran = CliRunner().invoke(cli, ["page", "--model", str(bundle.path), *options])
    assert ran.exit_code == code
    assert words in ran.stderr
    assert "Traceback" not in ran.output
    assert not (bundle.path / "examples.json").exists()
