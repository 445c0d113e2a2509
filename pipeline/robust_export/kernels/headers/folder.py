"""A folder of C++ headers."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Headers:
    """A folder with a runtime's headers."""

    path: Path
    origin: str  # where they were found, for messages
    pattern: str  # glob pattern of the headers that identify the version

    @property
    def digest(self) -> str:
        """Return the SHA-256 of the names and contents of the headers that match `pattern`."""
        digest = hashlib.sha256()
        for file in sorted(self.path.glob(self.pattern)):
            digest.update(f"{file.name}\n".encode() + file.read_bytes())
        return digest.hexdigest()
