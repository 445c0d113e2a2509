"""A folder of headers, and what it is known by."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Headers:
    """A folder with a runtime's headers."""

    path: Path
    origin: str  # in words
    names: str  # of those that tell one version from another, as a pattern

    @property
    def digest(self) -> str:
        """Return the SHA-256 of the headers' names and contents."""
        digest = hashlib.sha256()
        for file in sorted(self.path.glob(self.names)):
            digest.update(f"{file.name}\n".encode() + file.read_bytes())
        return digest.hexdigest()
