"""onnxruntime-web, which runs ONNX files in browsers: found in a folder, or fetched by npm and checked.

It is no part of this project, and nothing of it is kept in the repository. One version is known to work:
npm's archive of it is compared with its digest and kept in the cache.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from robust_export.errors import BuildError, reason
from robust_export.kernels.paths import cache
from robust_export.utils.files import write_atomically

PACKAGE, VERSION = "onnxruntime-web", "1.30.0"
SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="  # npm's
MODULE = "ort.wasm.min.mjs"  # what a page imports; it finds the others
FILES = (MODULE, "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
PLACES = ("", "dist", f"{PACKAGE}/dist", f"node_modules/{PACKAGE}/dist")  # below a folder that was given
HOW = f"Run `npm pack {PACKAGE}@{VERSION}` where there is a network, unpack it, and give --ort-web FOLDER."


@dataclass(frozen=True)
class WebRuntime:
    """The files that run models in browsers, by name, and where they are from."""

    files: dict[str, bytes]
    origin: str


def find(folder: Path | None = None, say: Callable[[str], None] = lambda line: None) -> WebRuntime:
    """Return onnxruntime-web's files, those of a folder or those of the version that is known to work.

    Raises:
        BuildError: if the folder lacks them, or they cannot be fetched.
    """
    if folder is not None:
        return _in_folder(folder)
    archive = cache() / f"{PACKAGE}-{VERSION}.tgz"
    if not archive.is_file():
        say(f"fetching {PACKAGE} {VERSION} by npm")
        write_atomically(archive, _fetch())
    if _digest(archive.read_bytes()) != SHA512:
        raise BuildError(
            f"{archive} is not {PACKAGE} {VERSION}: its digest is another. Delete it and try again."
        )
    return WebRuntime(_unpacked(archive), f"{PACKAGE} {VERSION}")


def _in_folder(folder: Path) -> WebRuntime:
    for place in PLACES:
        dist = folder / place
        if all((dist / name).is_file() for name in FILES):
            return WebRuntime({name: (dist / name).read_bytes() for name in FILES}, _named(dist))
    raise BuildError(
        f"{folder} lacks {', '.join(FILES)}; expected a folder that has {PACKAGE}'s dist/. {HOW}"
    )


def _named(dist: Path) -> str:
    """Return the package and version that a dist/ is of."""
    try:
        said = json.loads((dist.parent / "package.json").read_text("utf-8"))
        return f"{said['name']} {said['version']}"
    except (OSError, ValueError, KeyError, TypeError):
        return f"{PACKAGE} of an unknown version"


def _fetch() -> bytes:
    """Return npm's archive of the package."""
    npm = shutil.which("npm")
    if npm is None:
        raise BuildError(f"{PACKAGE} runs the model in browsers, and there is no npm here to fetch it. {HOW}")
    with tempfile.TemporaryDirectory(prefix="robust-export-npm-") as folder:
        command = [npm, "pack", f"{PACKAGE}@{VERSION}", "--ignore-scripts", "--pack-destination", folder]
        try:
            ran = subprocess.run(
                command, cwd=folder, capture_output=True, text=True, timeout=600, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise BuildError(f"npm cannot fetch {PACKAGE} {VERSION}: {reason(error)}. {HOW}") from None
        found = sorted(Path(folder).glob("*.tgz"))
        if ran.returncode or not found:
            lines = [line for line in ran.stderr.splitlines() if "error" in line.lower()]
            why = lines[0] if lines else f"it exited with {ran.returncode}"
            raise BuildError(f"npm cannot fetch {PACKAGE} {VERSION}: {why}. {HOW}")
        content = found[0].read_bytes()
    if _digest(content) != SHA512:
        raise BuildError(f"what npm fetched is not {PACKAGE} {VERSION}: its digest is another. {HOW}")
    return content


def _unpacked(archive: Path) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    with tarfile.open(archive) as packed:
        for name in FILES:
            member = packed.extractfile(f"package/dist/{name}")
            found[name] = member.read() if member is not None else b""
    return found


def _digest(content: bytes) -> str:
    return base64.b64encode(hashlib.sha512(content).digest()).decode()
