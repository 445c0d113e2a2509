"""Makes a root file system of the files that are named and of the libraries that they link.

    python3 rootfs.py TARGET PATH...

Everything keeps its place. Shared libraries are found as the loader finds them (ldd), for programs and for
every .so in the folders; a library that is missing is an error. Users are root and 65532, `nonroot`.
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
NEEDLESS = (
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
OF_NAMES = ("hosts: files dns\n", "/etc/nsswitch.conf")


def main(target: Path, paths: list[Path]) -> None:
    needed: set[Path] = set()
    for path in paths:
        for file in [path.resolve()] if path.is_file() else sorted(path.rglob("*")):
            needed |= libraries(file)
        copy(target, path)
    for library in sorted(needed):
        copy(target, library)
    for folder in ("usr/lib/python3.11/" + name for name in NEEDLESS):
        shutil.rmtree(target / folder, ignore_errors=True)
    for content, name in ((USERS, "/etc/passwd"), (GROUPS, "/etc/group"), OF_NAMES):
        file = inside(target, Path(name))
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    for folder in ("bundle", "dev", "proc", "sys"):  # where something is mounted
        (target / folder).mkdir()
    (target / "tmp").mkdir(mode=0o777)
    (target / "tmp").chmod(0o1777)


def libraries(file: Path) -> set[Path]:
    """Return the shared libraries that a program or library links, with the loader itself."""
    if file.is_symlink() or not file.is_file() or not elf(file):
        return set()
    said = subprocess.run(["ldd", file], capture_output=True, text=True, check=False).stdout
    missing = re.findall(r"(\S+) => not found", said)
    if missing:
        raise SystemExit(f"{file} links {', '.join(missing)}, which is not here")
    return {Path(name) for name in re.findall(r"(?:=> |^\s*)(/\S+)", said, re.MULTILINE)}


def elf(file: Path) -> bool:
    with file.open("rb") as content:
        return content.read(4) == b"\x7fELF"


def copy(target: Path, path: Path) -> None:
    """Copy a file, what it links to by name, or a folder, to the same place in the target."""
    place = inside(target, path)
    place.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        shutil.copytree(path, place, symlinks=True, dirs_exist_ok=True)
    elif not place.exists() and not place.is_symlink():
        shutil.copy2(path, place, follow_symlinks=False)
        if path.is_symlink():
            copy(target, path.parent / os.readlink(path))


def inside(target: Path, path: Path) -> Path:
    """Return a path's place in the target, where /lib is /usr/lib as in the system."""
    real = path.parent.resolve() / path.name
    for name in ("lib", "lib64"):  # the loader is asked for by its old name
        link = Path("/", name)
        if link.is_symlink() and not (target / name).is_symlink():
            target.mkdir(parents=True, exist_ok=True)
            (target / name).symlink_to(os.readlink(link))
    return target / real.relative_to("/")


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]])
