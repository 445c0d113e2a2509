"""onnxruntime-web, which runs ONNX files in browsers: read from a folder, or fetched by npm.

It is not part of this project. One version is tested; npm's archive of it is checked against its digest and
kept in the cache.
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
from robust_export.kernels.paths import cache_folder
from robust_export.utils.files import write_atomically

PACKAGE, VERSION = "onnxruntime-web", "1.30.0"
SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="  # npm's
MODULE = "ort.wasm.min.mjs"  # imported by the page; it loads the other files
FILES = (MODULE, "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
SUBFOLDERS = ("", "dist", f"{PACKAGE}/dist", f"node_modules/{PACKAGE}/dist")  # searched below a given folder
INSTRUCTIONS = (
    f"Run `npm pack {PACKAGE}@{VERSION}` on a machine with network access, unpack it, and give "
    "--ort-web FOLDER."
)


@dataclass(frozen=True)
class WebRuntime:
    """Content of the runtime's files by name, and the package and version they come from."""

    files: dict[str, bytes]
    origin: str


def find_runtime(folder: Path | None = None, say: Callable[[str], None] = lambda line: None) -> WebRuntime:
    """Return onnxruntime-web from a folder, or the tested version from the cache or npm.

    Args:
        say: called with a line of progress before npm runs.

    Raises:
        BuildError: if the folder lacks the files, or they cannot be fetched.
    """
    if folder is not None:
        return _from_folder(folder)
    archive = cache_folder() / f"{PACKAGE}-{VERSION}.tgz"
    if not archive.is_file():
        say(f"fetching {PACKAGE} {VERSION} by npm")
        write_atomically(archive, _fetch())
    if _digest(archive.read_bytes()) != SHA512:
        raise BuildError(
            f"the digest of {archive} is not that of {PACKAGE} {VERSION}. Delete it and try again."
        )
    return WebRuntime(_unpack(archive), f"{PACKAGE} {VERSION}")


def _from_folder(folder: Path) -> WebRuntime:
    for subfolder in SUBFOLDERS:
        dist = folder / subfolder
        if all((dist / name).is_file() for name in FILES):
            return WebRuntime({name: (dist / name).read_bytes() for name in FILES}, _origin(dist))
    raise BuildError(
        f"{folder} lacks {', '.join(FILES)}; expected a folder that has {PACKAGE}'s dist/. {INSTRUCTIONS}"
    )


def _origin(dist: Path) -> str:
    """Return the package and version of a dist/ folder."""
    try:
        package = json.loads((dist.parent / "package.json").read_text("utf-8"))
        return f"{package['name']} {package['version']}"
    except (OSError, ValueError, KeyError, TypeError):
        return f"{PACKAGE} of an unknown version"


def _fetch() -> bytes:
    """Return npm's archive of the package."""
    npm = shutil.which("npm")
    if npm is None:
        raise BuildError(
            f"{PACKAGE} runs the model in browsers; npm, which fetches it, is not installed. {INSTRUCTIONS}"
        )
    with tempfile.TemporaryDirectory(prefix="robust-export-npm-") as folder:
        command = [npm, "pack", f"{PACKAGE}@{VERSION}", "--ignore-scripts", "--pack-destination", folder]
        try:
            result = subprocess.run(
                command, cwd=folder, capture_output=True, text=True, timeout=600, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise BuildError(
                f"npm cannot fetch {PACKAGE} {VERSION}: {reason(error)}. {INSTRUCTIONS}"
            ) from None
        archives = sorted(Path(folder).glob("*.tgz"))
        if result.returncode or not archives:
            lines = [line for line in result.stderr.splitlines() if "error" in line.lower()]
            cause = lines[0] if lines else f"exit code {result.returncode}"
            raise BuildError(f"npm cannot fetch {PACKAGE} {VERSION}: {cause}. {INSTRUCTIONS}")
        content = archives[0].read_bytes()
    if _digest(content) != SHA512:
        raise BuildError(
            f"the archive from npm is not {PACKAGE} {VERSION}: its digest differs. {INSTRUCTIONS}"
        )
    return content


def _unpack(archive: Path) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    with tarfile.open(archive) as tar:
        for name in FILES:
            member = tar.extractfile(f"package/dist/{name}")
            files[name] = member.read() if member is not None else b""
    return files


def _digest(content: bytes) -> str:
    return base64.b64encode(hashlib.sha512(content).digest()).decode()
