"""Copies files and folders, with the shared libraries they link, into a new root file system.

    python3 rootfs.py TARGET PATH...

All paths stay the same. Libraries are resolved by ldd, for programs and for every .so in the folders; a
missing library is an error. The users are root and nonroot (65532).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

USERS = "root:x:0:0:root:/:/nowhere\nnonroot:x:65532:65532:nonroot:/tmp:/nowhere\n"
GROUPS = "root:x:0:\nnonroot:x:65532:\n"
UNUSED = (
    "config-3.11-x86_64-linux-gnu",
    "ensurepip",
    "idlelib",
    "lib2to3",
    "pydoc_data",
    "test",
    "tkinter",
    "turtledemo",
    "venv",
)
NAME_RESOLUTION = "hosts: files dns\n"


def main(target: Path, paths: list[Path]) -> None:
    needed: set[Path] = set()
    for path in paths:
        for file in [path.resolve()] if path.is_file() else sorted(path.rglob("*")):
            needed |= libraries(file)
        copy(target, path)
    for library in sorted(needed):
        copy(target, library)
    for folder in ("usr/lib/python3.11/" + name for name in UNUSED):
        shutil.rmtree(target / folder, ignore_errors=True)
    for content, name in (
        (USERS, "/etc/passwd"),
        (GROUPS, "/etc/group"),
        (NAME_RESOLUTION, "/etc/nsswitch.conf"),
    ):
        file = path_in_target(target, Path(name))
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    for folder in ("bundle", "dev", "proc", "sys"):  # mount points
        (target / folder).mkdir()
    (target / "tmp").mkdir(mode=0o777)
    (target / "tmp").chmod(0o1777)


def libraries(file: Path) -> set[Path]:
    """Return the shared libraries that a program or library links, including the loader."""
    if file.is_symlink() or not file.is_file() or not is_elf(file):
        return set()
    output = subprocess.run(["ldd", file], capture_output=True, text=True, check=False).stdout
    missing = re.findall(r"(\S+) => not found", output)
    if missing:
        raise SystemExit(f"{file} links {', '.join(missing)}, which this machine lacks")
    return {Path(name) for name in re.findall(r"(?:=> |^\s*)(/\S+)", output, re.MULTILINE)}


def is_elf(file: Path) -> bool:
    with file.open("rb") as content:
        return content.read(4) == b"\x7fELF"


def copy(target: Path, path: Path) -> None:
    """Copy a file (a symbolic link with the file it points to) or a folder to the same path in the target."""
    destination = path_in_target(target, path)
    destination.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        shutil.copytree(path, destination, symlinks=True, dirs_exist_ok=True)
    elif not destination.exists() and not destination.is_symlink():
        shutil.copy2(path, destination, follow_symlinks=False)
        if path.is_symlink():
            copy(target, path.parent / os.readlink(path))


def path_in_target(target: Path, path: Path) -> Path:
    """Return a path below the target, where /lib links to /usr/lib as on this machine."""
    real = path.parent.resolve() / path.name
    for name in ("lib", "lib64"):  # programs name the loader by this path
        link = Path("/", name)
        if link.is_symlink() and not (target / name).is_symlink():
            target.mkdir(parents=True, exist_ok=True)
            (target / name).symlink_to(os.readlink(link))
    return target / real.relative_to("/")


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]])
