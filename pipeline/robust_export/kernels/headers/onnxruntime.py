"""ONNX Runtime's C++ headers, which no Python package has.

They are looked for where ONNXRUNTIME_INCLUDE_DIR says, in the system's include folders, in Debian's
package (fetched and unpacked, not installed), and in ONNX Runtime's release archive, in this order. What
is fetched is kept in the cache. A library that is built with them asks for API version 18, whatever theirs.
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
OLDEST = 18  # of the API, which has every function that the kernels call
SYSTEM = ("/usr/include/onnxruntime", "/usr/local/include/onnxruntime", "/usr/include", "/usr/local/include")
SUITE, MIRROR = "trixie", "http://deb.debian.org/debian"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"  # apt checks the package with it
RELEASE = "1.21.0"
ARCHIVE = "https://github.com/microsoft/onnxruntime/releases/download/v{version}/onnxruntime-linux-{arch}-{version}.tgz"

FAILURES = (
    OSError, EOFError, zlib.error, http.client.HTTPException, subprocess.SubprocessError, tarfile.TarError,
)  # fmt: skip
"""Of a download, and of what was downloaded; URLError is an OSError."""


def find_headers(cache: Path) -> Headers:
    """Return ONNX Runtime's headers, fetched into `cache` where the machine has none.

    Raises:
        BuildError: if there are none, saying where they were looked for and how to get them.
    """
    given = os.environ.get("ONNXRUNTIME_INCLUDE_DIR")
    if given:
        folder = _folder_with_header(Path(given))
        if folder is None:
            raise BuildError(
                f"ONNXRUNTIME_INCLUDE_DIR is {given}, which has no {HEADER} of API {OLDEST} or later"
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
    """Return the folder, or one below it, whose headers are new enough."""
    layouts = (folder, folder / "include", folder / "usr/include/onnxruntime", folder / "onnxruntime",
               folder / "onnxruntime/core/session")  # fmt: skip
    for place in layouts:
        if (place / HEADER).is_file() and _api_version(place / C_API) >= OLDEST:
            return place
    return None


def _api_version(header: Path) -> int:
    try:
        found = re.search(r"#define ORT_API_VERSION (\d+)", header.read_text("utf-8", "replace"))
    except OSError:
        return 0
    return int(found[1]) if found else 0


def _fetch(fetch: Callable[[Path], str | None], target: Path) -> str | None:
    """Run `fetch` on a folder of its own and keep it as `target`; return what went wrong."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetch-") as work:
        folder = Path(work) / "unpacked"
        folder.mkdir()
        try:
            problem = fetch(folder)
            if problem is None:
                replace_folder(folder, target)
        except FAILURES as error:
            problem = reason(error)
    return problem


def _from_debian(folder: Path) -> str | None:
    """Download Debian's package as an ordinary user, with apt's own check of its signature."""
    if not shutil.which("apt-get") or not shutil.which("dpkg"):
        return "this machine has no apt-get"
    if not Path(KEYRING).is_file():
        return f"this machine has no {KEYRING}, with which apt would check it"
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
            ran = subprocess.run(command, cwd=state, capture_output=True, text=True, timeout=300, check=False)
            if ran.returncode:
                lines = [line for line in ran.stderr.splitlines() if line.startswith("E:")]
                return lines[0] if lines else f"apt-get exited with {ran.returncode}"
        packages = list(state.glob("*.deb"))
        if not packages:
            return "apt-get downloaded nothing"
        subprocess.run(["dpkg", "-x", str(packages[0]), str(folder)], check=True, capture_output=True)
    return None


def _from_release(folder: Path) -> str | None:
    """Download the archive that ONNX Runtime publishes, over TLS, and keep its headers."""
    arch = {"x86_64": "x64", "aarch64": "aarch64"}.get(platform.machine())
    if platform.system() != "Linux" or arch is None:
        return f"there is no archive for {platform.system()} on {platform.machine()}"
    with tempfile.NamedTemporaryFile(suffix=".tgz") as file:
        url = ARCHIVE.format(version=RELEASE, arch=arch)
        with urllib.request.urlopen(url, timeout=60) as response:  # noqa: S310 (https)
            if response.url.split(":")[0] != url.split(":")[0]:
                return f"{url} leads to {response.url}, which is not to be trusted"
            shutil.copyfileobj(response, file)
        file.flush()
        with tarfile.open(file.name) as archive:
            for member in archive:
                content = archive.extractfile(member) if "/include/" in member.name else None
                if content is not None:
                    (folder / Path(member.name).name).write_bytes(content.read())
    return None
