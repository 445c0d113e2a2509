"""Find ONNX Runtime's C++ headers, which no Python package includes.

Sources, in this order: ONNXRUNTIME_INCLUDE_DIR, the system's include folders, Debian's package (downloaded
and unpacked, not installed), ONNX Runtime's release archive. Downloads are kept in the cache. The library
requests API version 18 at run time, so newer headers do not make it need a newer ONNX Runtime.
"""

from __future__ import annotations

import http.client
import os
import platform
import re
import shutil
import subprocess
import tarfile
import tempfile
import urllib.request
import zlib
from collections.abc import Callable
from pathlib import Path

from robust_export.errors import BuildError, reason
from robust_export.kernels.headers.folder import Headers
from robust_export.utils.files import replace_folder

HEADER, C_API = "onnxruntime_cxx_api.h", "onnxruntime_c_api.h"
MIN_API = 18  # the first API version with every function that the library calls
SYSTEM = ("/usr/include/onnxruntime", "/usr/local/include/onnxruntime", "/usr/include", "/usr/local/include")
SUITE, MIRROR = "trixie", "http://deb.debian.org/debian"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"  # for apt's signature check
RELEASE = "1.21.0"
ARCHIVE = "https://github.com/microsoft/onnxruntime/releases/download/v{version}/onnxruntime-linux-{arch}-{version}.tgz"

DOWNLOAD_ERRORS = (
    OSError, EOFError, zlib.error, http.client.HTTPException, subprocess.SubprocessError, tarfile.TarError,
)  # fmt: skip
"""Errors of a download and of unpacking it; URLError is an OSError."""


def find_ort_headers(cache: Path) -> Headers:
    """Return ONNX Runtime's headers, downloaded into the folder `cache` if the machine has none.

    Raises:
        BuildError: if there are none; the message lists what was tried and says how to get them.
    """
    requested = os.environ.get("ONNXRUNTIME_INCLUDE_DIR")
    if requested:
        folder = _folder_with_header(Path(requested))
        if folder is None:
            raise BuildError(
                f"ONNXRUNTIME_INCLUDE_DIR is {requested}, which has no {HEADER} of API {MIN_API} or later"
            )
        return Headers(folder, f"ONNXRUNTIME_INCLUDE_DIR ({folder})", C_API)
    for name in SYSTEM:
        if folder := _folder_with_header(Path(name)):
            return Headers(folder, str(folder), C_API)
    tried = ["no system include folder has it"]
    fetches: list[tuple[str, Callable[[Path], str | None]]] = [
        (f"Debian {SUITE}'s libonnxruntime-dev", _from_debian),
        (f"ONNX Runtime's release {RELEASE}", _from_release),
    ]
    for origin, fetch in fetches:
        target = cache / origin.split("'")[0].replace(" ", "-").lower()
        folder = _folder_with_header(target)
        if folder is None:
            problem = _fetch(fetch, target)
            folder = _folder_with_header(target)
            if folder is None:
                tried.append(f"{origin}: {problem or 'it has no such file'}")
                continue
        return Headers(folder, origin, C_API)
    raise BuildError(
        f"ONNX Runtime's header {HEADER} was not found, so its kernel cannot be built:\n  "
        + "\n  ".join(tried)
        + "\nInstall it (Debian 13, Ubuntu 25.04 and later: apt-get install libonnxruntime-dev), or unpack "
        "ONNX Runtime's release archive and set ONNXRUNTIME_INCLUDE_DIR to its include folder."
    )


def _folder_with_header(folder: Path) -> Path | None:
    """Return the folder, or a known subfolder, with headers of MIN_API or later."""
    candidates = (folder, folder / "include", folder / "usr/include/onnxruntime", folder / "onnxruntime",
                  folder / "onnxruntime/core/session")  # fmt: skip
    for candidate in candidates:
        if (candidate / HEADER).is_file() and _api_version(candidate / C_API) >= MIN_API:
            return candidate
    return None


def _api_version(header: Path) -> int:
    try:
        match = re.search(r"#define ORT_API_VERSION (\d+)", header.read_text("utf-8", "replace"))
    except OSError:
        return 0
    return int(match[1]) if match else 0


def _fetch(fetch: Callable[[Path], str | None], target: Path) -> str | None:
    """Run `fetch` on a temporary folder and move it to `target`. Return an error message, None on success."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetch-") as work:
        folder = Path(work) / "unpacked"
        folder.mkdir()
        try:
            problem = fetch(folder)
            if problem is None:
                replace_folder(folder, target)
        except DOWNLOAD_ERRORS as error:
            problem = reason(error)
    return problem


def _from_debian(folder: Path) -> str | None:
    """Download and unpack Debian's package as any user; apt checks its signature. Return an error message."""
    if not shutil.which("apt-get") or not shutil.which("dpkg"):
        return "this machine has no apt-get"
    if not Path(KEYRING).is_file():
        return f"this machine has no {KEYRING}, which apt needs to verify the package's signature"
    with tempfile.TemporaryDirectory(prefix="robust-export-apt-") as name:
        state = Path(name)
        for part in ("lists/partial", "cache/archives/partial"):
            (state / part).mkdir(parents=True)
        (state / "sources.list").write_text(f"deb [signed-by={KEYRING}] {MIRROR} {SUITE} main\n")
        settings = {
            "Dir::Etc::sourcelist": state / "sources.list", "Dir::Etc::sourceparts": "-",
            "Dir::State::lists": state / "lists", "Dir::Cache": state / "cache",
            "APT::Sandbox::User": "", "Acquire::http::Timeout": 20, "Acquire::Retries": 1,
        }  # fmt: skip
        apt = ["apt-get", "--quiet", *(f"-o{key}={value}" for key, value in settings.items())]
        for command in ([*apt, "update"], [*apt, "download", "libonnxruntime-dev"]):
            result = subprocess.run(
                command, cwd=state, capture_output=True, text=True, timeout=300, check=False
            )
            if result.returncode:
                lines = [line for line in result.stderr.splitlines() if line.startswith("E:")]
                return lines[0] if lines else f"apt-get exited with {result.returncode}"
        packages = list(state.glob("*.deb"))
        if not packages:
            return "apt-get downloaded nothing"
        subprocess.run(["dpkg", "-x", str(packages[0]), str(folder)], check=True, capture_output=True)
    return None


def _from_release(folder: Path) -> str | None:
    """Download ONNX Runtime's release archive and extract its headers. Return an error message."""
    arch = {"x86_64": "x64", "aarch64": "aarch64"}.get(platform.machine())
    if platform.system() != "Linux" or arch is None:
        return f"there is no archive for {platform.system()} on {platform.machine()}"
    with tempfile.NamedTemporaryFile(suffix=".tgz") as file:
        url = ARCHIVE.format(version=RELEASE, arch=arch)
        with urllib.request.urlopen(url, timeout=60) as response:  # noqa: S310 (https)
            if response.url.split(":")[0] != url.split(":")[0]:
                return f"{url} redirects to {response.url}, which has another scheme"
            shutil.copyfileobj(response, file)
        file.flush()
        with tarfile.open(file.name) as archive:
            for member in archive:
                content = archive.extractfile(member) if "/include/" in member.name else None
                if content is not None:
                    (folder / Path(member.name).name).write_bytes(content.read())
    return None
