"""The web page as one HTML document, and its Content-Security-Policy."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

STATIC = Path(__file__).parent / "static"
SCRIPTS = ("images.js", "models.js", "view.js", "page.js")  # one scope, in this order
META = '<meta http-equiv="Content-Security-Policy" content="{policy}">'


@dataclass(frozen=True)
class Page:
    """HTML, and the Content-Security-Policy to send with it."""

    html: str
    policy: str


@cache
def server_page() -> Page:
    """Return the page of a server. It contains no data: the script requests everything from the server."""
    script = _script()
    policy = _policy(script, "frame-ancestors 'none'")
    return Page(_html(script, "", {}), policy)


def static_page(config: Mapping[str, Any]) -> Page:
    """Return the page that runs models in the browser, with its policy in a meta element.

    Args:
        config: {"models": [{"name", "labels", "inputShape", "file", "examplesFile"}], "runtime": module of
            onnxruntime-web}; URLs are relative to the page.
    """
    script = _script()
    policy = _policy(script, "", "'self' 'wasm-unsafe-eval'")
    return Page(_html(script, META.format(policy=policy), config), policy)


def _html(script: str, head: str, config: Mapping[str, Any]) -> str:
    """Return page.html with its placeholders replaced."""
    config_json = json.dumps(config).replace("<", "\\u003c")  # a label must not end the script element
    values = {
        "<!--head-->": head, "/*style*/": _read("style.css"), "/*config*/": config_json, "/*script*/": script,
    }  # fmt: skip
    html = _read("page.html")
    for placeholder, value in values.items():
        before, after = html.split(placeholder)
        html = before + value + after
    return html


def _script() -> str:
    return "\n".join(_read(name) for name in SCRIPTS)


def _policy(script: str, last_rule: str, script_sources: str = "") -> str:
    """Return a policy that loads nothing from other hosts and runs only the page's own script."""
    rules = [
        "default-src 'none'", f"script-src {_digest(script)} {script_sources}",
        f"style-src {_digest(_read('style.css'))}",
        "img-src data: blob:", "connect-src 'self'", "base-uri 'none'", "form-action 'none'", last_rule,
    ]  # fmt: skip
    return "; ".join(rule.strip() for rule in rules if rule)


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


@cache
def _read(name: str) -> str:
    return (STATIC / name).read_text("utf-8")
