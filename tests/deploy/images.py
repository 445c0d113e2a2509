"""Images without a Docker engine: bases by debootstrap, builds by buildah, runs by namespaces and chroot.

What runs gets what the image's configuration says: environment, user, entrypoint, command, health check. The
root file system is read-only but for /tmp, the network has a loopback device alone.
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
CERTIFICATES = "/run/host-certificates.crt"  # where builds see the host's, if its network needs some
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
    """An image that was built, mounted at `root`."""

    root: Path
    config: Mapping[str, Any]

    def command(self) -> list[str]:
        return [*self.config["Entrypoint"], *self.config["Cmd"]]

    def health(self) -> list[str]:
        kind, *words = self.config["Healthcheck"]["Test"]
        assert kind == "CMD", "a health check through a shell, which the image has not"
        return list(words)

    def inside(self, words: Sequence[str]) -> list[str]:
        """Return the words of a command that runs in the image as its user, without a way to more."""
        chroot = [tool("chroot"), f"--userspec={self.config['User']}", "--groups=", str(self.root)]
        return [tool("setpriv"), "--no-new-privs", *chroot, *words]

    def environment(self) -> dict[str, str]:
        """Return the image's own environment: nothing of this process gets in."""
        return dict(word.split("=", 1) for word in self.config["Env"])

    def start(self, bundle: Path, words: Sequence[str], log: Path) -> subprocess.Popen[str]:
        """Start a command in namespaces of its own, with the bundle at /bundle."""
        setup = ["/bin/sh", "-c", SETUP, "sh", str(self.root), str(bundle)]
        command = [tool("unshare"), "--mount", "--net", "--ipc", *setup, *self.inside(words)]
        with log.open("w") as errors:
            return subprocess.Popen(
                command, env=self.environment() | {"PATH": f"{self.environment()['PATH']}:{os.defpath}"},
                stdout=subprocess.PIPE, stderr=errors, text=True,
            )  # fmt: skip

    def run(self, process: int, words: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """Run another command beside a process that was started, in the same namespaces."""
        command = [tool("nsenter"), f"--target={process}", "--mount", "--net", *self.inside(words)]
        return subprocess.run(command, env=self.environment(), capture_output=True, text=True, timeout=60)


def tool(name: str) -> str:
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    assert found, name
    return found


def check_machine() -> None:
    """End with what is missing, where something is."""
    missing = [name for name in TOOLS if not shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")]
    if missing:
        packages = "buildah debootstrap iproute2 util-linux"
        raise SystemExit(f"there is no {', '.join(missing)}: apt-get install {packages}")
    if os.geteuid():
        raise SystemExit("building images without a Docker engine needs root")


def buildah(*words: str | Path, quiet: bool = True) -> str:
    ran = subprocess.run(
        ["buildah", *map(str, words)], env=ENVIRONMENT, check=True, text=True,
        stdout=subprocess.PIPE if quiet else None,
    )  # fmt: skip
    return (ran.stdout or "").strip()


def base() -> str:
    """Return the image that the Dockerfile's `cpu` stands on, made by debootstrap where it is not there."""
    found = re.search(r"^ARG DEBIAN=(\S+):12\S*$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert found, "the base is not Debian 12"
    name = found[0].removeprefix("ARG DEBIAN=")
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
    """Build a target of the Dockerfile; pip trusts the certificates that it trusts on this machine."""
    base()
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
    """Yield an image with its files in a folder of this machine."""
    config = json.loads(buildah("inspect", "--type=image", name))["Docker"]["config"]
    container = buildah("from", "--pull-never", name)
    try:
        yield Image(Path(buildah("mount", container)), config)
    finally:
        buildah("rm", container)
