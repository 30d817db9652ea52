"""Sources of pictures that programs may have."""

from pathlib import Path


class ReadablePath:
    """A path object that can also read its file; its `name` is the last part only, as a path's."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.name = path.name

    def __fspath__(self) -> str:
        return str(self._path)

    def read(self, size: int = -1, /) -> bytes:
        """Read the file, as a binary file does."""
        return self._path.read_bytes()[: None if size < 0 else size]
