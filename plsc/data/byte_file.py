"""Reading at any place of a file."""

import os
from pathlib import Path

from plsc.errors import DataError


class ByteFile:
    """A file read at any place, by several processes at once."""

    def __init__(self, path: Path):
        self.path = path
        self._descriptor = os.open(path, os.O_RDONLY)

    def read(self, offset: int, size: int) -> bytes:
        """Exactly `size` bytes. Raises DataError where the file ends before."""
        content = os.pread(self._descriptor, size, offset)
        if len(content) != size:
            raise DataError(f"{self.path}: ends at byte {offset + len(content)}; it was longer when it was indexed")
        return content

    def close(self):
        os.close(self._descriptor)
