"""Building and running images without a Docker engine: debootstrap, buildah, namespaces and chroot.

A container gets the environment, user, entrypoint, command and health check of the image's configuration. Its
root file system is read-only except /tmp; its network has a loopback device only.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
TOOLS = ("buildah", "chroot", "debootstrap", "ip", "nsenter", "setpriv", "unshare")
MIRROR = "http://deb.debian.org/debian"
CERTIFICATES = "/run/host-certificates.crt"  # path of the host's certificates during builds
ENVIRONMENT = os.environ | {"BUILDAH_ISOLATION": "chroot"}

SETUP = """
set -e
root=$1 bundle=$2; shift 2
ip link set lo up
mount --bind "$root" "$root"
mount -o remount,bind,ro "$root"
mount -t tmpfs tmpfs "$root/tmp"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount --bind -o ro "$bundle" "$root/bundle"
exec "$@"
"""


@dataclass(frozen=True)
class Image:
    """A built image, mounted at `root`."""

    root: Path
    config: Mapping[str, Any]

    def command(self) -> list[str]:
        return [*self.config["Entrypoint"], *self.config["Cmd"]]

    def health(self) -> list[str]:
        kind, *words = self.config["Healthcheck"]["Test"]
        assert kind == "CMD", "the health check needs a shell, which the image lacks"
        return list(words)

    def command_inside(self, words: Sequence[str]) -> list[str]:
        """Return a command that runs `words` in the image as its user, without new privileges."""
        chroot = [tool("chroot"), f"--userspec={self.config['User']}", "--groups=", str(self.root)]
        return [tool("setpriv"), "--no-new-privs", *chroot, *words]

    def environment(self) -> dict[str, str]:
        """Return the environment of the image only."""
        return dict(word.split("=", 1) for word in self.config["Env"])

    def start(self, bundle: Path, words: Sequence[str], log: Path) -> subprocess.Popen[str]:
        """Start a command in new namespaces, with the bundle at /bundle."""
        setup = ["/bin/sh", "-c", SETUP, "sh", str(self.root), str(bundle)]
        command = [tool("unshare"), "--mount", "--net", "--ipc", *setup, *self.command_inside(words)]
        with log.open("w") as errors:
            return subprocess.Popen(
                command, env=self.environment() | {"PATH": f"{self.environment()['PATH']}:{os.defpath}"},
                stdout=subprocess.PIPE, stderr=errors, text=True,
            )  # fmt: skip

    def run(self, process: int, words: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """Run a command in the namespaces of a running process."""
        command = [tool("nsenter"), f"--target={process}", "--mount", "--net", *self.command_inside(words)]
        return subprocess.run(command, env=self.environment(), capture_output=True, text=True, timeout=60)


def tool(name: str) -> str:
    path = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    assert path, name
    return path


def check_machine() -> None:
    """Exit with a message if a tool or root is missing."""
    missing = [name for name in TOOLS if not shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")]
    if missing:
        packages = "buildah debootstrap iproute2 util-linux"
        raise SystemExit(f"missing: {', '.join(missing)}; run apt-get install {packages}")
    if os.geteuid():
        raise SystemExit("building images without a Docker engine needs root")


def buildah(*words: str | Path, quiet: bool = True) -> str:
    result = subprocess.run(
        ["buildah", *map(str, words)], env=ENVIRONMENT, check=True, text=True,
        stdout=subprocess.PIPE if quiet else None,
    )  # fmt: skip
    return (result.stdout or "").strip()


def base_image() -> str:
    """Return the base image of the target `cpu`; make it by debootstrap if it does not exist."""
    match = re.search(r"^ARG DEBIAN=(\S+):12\S*$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert match, "the base image is not Debian 12"
    name = match[0].removeprefix("ARG DEBIAN=")
    if subprocess.run(["buildah", "inspect", "--type=image", name], capture_output=True).returncode == 0:
        return name
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["debootstrap", "--variant=minbase", "bookworm", folder, MIRROR], check=True)
        container = buildah("from", "scratch")
        buildah("add", "-q", container, folder, "/")
    buildah("config", "--env", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", container)
    buildah("commit", "-q", "--rm", container, name)
    return name


def build(target: str, name: str) -> None:
    """Build a target of the Dockerfile; pip in it uses the certificates of this machine."""
    base_image()
    words: list[str | Path] = ["bud", "--format=docker", "--pull-never", "--layers", f"--target={target}"]
    with tempfile.TemporaryDirectory() as folder:
        certificates = os.environ.get("PIP_CERT") or os.environ.get("SSL_CERT_FILE")
        if certificates:
            pip = Path(folder) / "pip.conf"
            pip.write_text(f"[global]\ncert = {CERTIFICATES}\n")
            words += ["--volume", f"{certificates}:{CERTIFICATES}:ro", "--volume", f"{pip}:/etc/pip.conf:ro"]
        buildah(*words, f"--tag={name}", ROOT, quiet=False)


@contextmanager
def mounted(name: str) -> Iterator[Image]:
    """Mount an image in a folder of this machine, and yield it."""
    config = json.loads(buildah("inspect", "--type=image", name))["Docker"]["config"]
    container = buildah("from", "--pull-never", name)
    try:
        yield Image(Path(buildah("mount", container)), config)
    finally:
        buildah("rm", container)
