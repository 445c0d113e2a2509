"""The page at / in one piece, and the policy that says what a browser may do with it."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "static"
SCRIPTS = ("images.js", "models.js", "view.js", "page.js")  # in one scope, in this order
META = '<meta http-equiv="Content-Security-Policy" content="{policy}">'


@dataclass(frozen=True)
class Page:
    """HTML in one piece, and the Content-Security-Policy that it is to be sent with."""

    html: str
    policy: str


@cache
def server_page() -> Page:
    """Return the page that a server shows: it knows no model, and asks the server for all that it shows."""
    script = _script()
    policy = _policy(script, "frame-ancestors 'none'")
    return Page(_filled(script, "", {}), policy)


def static_page(models: Mapping[str, Any]) -> Page:
    """Return the page that runs models in the visitor's browser; its policy is in the page as well.

    Args:
        models: {"models": [{"name", "labels", "plane", "file", "examplesFile"}], "runtime": onnxruntime-web's
            module}, addresses relative to the page's.
    """
    script = _script()
    policy = _policy(script, "", "'self' 'wasm-unsafe-eval'")
    return Page(_filled(script, META.format(policy=policy), models), policy)


def _filled(script: str, head: str, config: Mapping[str, Any]) -> str:
    """Return page.html with everything in its place."""
    text = json.dumps(config).replace("<", "\\u003c")  # so that no text of it ends the script
    parts = {"<!--head-->": head, "/*style*/": _read("style.css"), "/*config*/": text, "/*script*/": script}
    html = _read("page.html")
    for place, part in parts.items():
        before, after = html.split(place)
        html = before + part + after
    return html


def _script() -> str:
    return "\n".join(_read(name) for name in SCRIPTS)


def _policy(script: str, more: str, sources: str = "") -> str:
    """Return a policy: nothing comes from elsewhere, and nothing runs but the page's own script."""
    rules = [
        "default-src 'none'", f"script-src {_digest(script)} {sources}",
        f"style-src {_digest(_read('style.css'))}",
        "img-src data: blob:", "connect-src 'self'", "base-uri 'none'", "form-action 'none'", more,
    ]  # fmt: skip
    return "; ".join(rule.strip() for rule in rules if rule)


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


@cache
def _read(name: str) -> str:
    return (FOLDER / name).read_text("utf-8")
