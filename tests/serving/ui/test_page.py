"""The page's HTML: its policy, no content from other hosts, escaping, and the endpoints that serve it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from robust_export.serving.ui.page import SCRIPTS, STATIC, Page, server_page, static_page
from tests.serving.servers import App

HOSTILE = "</script><script>alert(1)</script><!-- \"'&"
PAGES = {
    "served": server_page(),
    "copy": static_page({"models": [{"labels": [HOSTILE]}], "runtime": "x.mjs"}),
}
VOID = {"meta", "link", "input", "br"}


class Parts(HTMLParser):
    """Tags, scripts and styles of a page; fails if a tag is not closed where it should be."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.contents: dict[str, list[str]] = {"script": [], "style": []}
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in self.contents:
            self.contents[self.open[-1]].append(data)


@pytest.fixture(params=PAGES)
def page(request: pytest.FixtureRequest) -> Page:
    return PAGES[request.param]


def digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def test_policy_allows_only_the_pages_own_script(page: Page) -> None:
    parts = Parts(page.html)
    config, script = parts.contents["script"]
    (style,) = parts.contents["style"]
    rules = {rule.split()[0]: rule.split()[1:] for rule in page.policy.split("; ")}
    assert rules["default-src"] == ["'none'"]
    assert rules["script-src"][0] == digest(script)
    assert set(rules["script-src"][1:]) <= {"'self'", "'wasm-unsafe-eval'"}
    assert rules["style-src"] == [digest(style)]
    assert rules["connect-src"] == ["'self'"]
    assert "unsafe-inline" not in page.policy
    assert "http" not in page.policy
    json.loads(config)


def test_page_loads_nothing_from_other_hosts(page: Page) -> None:
    urls = set(re.findall(r"https?://[^\s\"'`]+|[\"'`]//[^\s\"'`]+", page.html))
    assert urls <= {"http://www.w3.org/2000/svg"}  # an XML namespace, never fetched
    for tag, attrs in Parts(page.html).tags:
        assert not [name for name in attrs if name.startswith("on") or name == "style"], tag
        assert "src" not in attrs, tag
        assert tag != "link" or attrs["href"] == "data:,"


def test_static_copy_contains_its_policy() -> None:
    head = [attrs for tag, attrs in Parts(PAGES["copy"].html).tags if tag == "meta"]
    assert PAGES["copy"].policy in [attrs.get("content") for attrs in head]
    assert (
        "frame-ancestors" not in PAGES["copy"].policy
    )  # browsers ignore it in a meta element, with a warning


def test_label_cannot_end_the_script() -> None:
    parts = Parts(PAGES["copy"].html)
    assert len(parts.contents["script"]) == 2
    assert json.loads(parts.contents["script"][0])["models"][0]["labels"] == [HOSTILE]


def test_scripts_and_styles_use_existing_ids() -> None:
    ids = {attrs["id"] for _, attrs in Parts(server_page().html).tags if "id" in attrs}
    scripts = "".join((STATIC / name).read_text() for name in SCRIPTS)
    named = set(re.findall(r"\$\(\"([\w-]+)\"\)", scripts))
    assert named <= ids
    assert len(named) > 20
    styled = set(re.findall(r"#([\w-]+)", re.sub(r"\{[^}]*\}", "", (STATIC / "style.css").read_text())))
    assert styled <= ids


def test_server_sends_the_page_without_a_key(net: Path) -> None:
    app = App(net, api_key="secret")
    try:
        response = app.request("GET", "/")
        assert response.status == 200
        assert response.content.decode() == server_page().html
        assert response.headers["content-security-policy"] == server_page().policy
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["content-type"] == "text/html; charset=utf-8"
        assert app.request("GET", "/examples/net").status == 401
        assert b"net" not in [word for word in response.content.split() if word == b"net"]
    finally:
        app.close()


def test_server_sends_examples(net: Path, with_examples: Path) -> None:
    app = App(net, with_examples)
    try:
        response = app.request("GET", "/examples/tiny")
        assert response.content == (with_examples / "examples.json").read_bytes()
        assert response.headers["content-type"] == "application/json"
        response = app.request("GET", "/examples/net")
        assert response.status == 404
        assert "robust-export page" in response.json()["error"]
        assert app.request("GET", "/examples/nothing").status == 404
        assert app.request("GET", "/examples/..%2fmanifest.json").status == 404
        path = app.request("GET", "/openapi.json").json()["paths"]["/examples/{model}"]
        assert path["parameters"][0]["schema"] == {"enum": ["tiny"]}
        metadata = [app.request("GET", f"/v2/models/{name}").json()["parameters"] for name in ("net", "tiny")]
        assert [parameters["robust_export.examples"] for parameters in metadata] == ["false", "true"]
    finally:
        app.close()
