"""Writing a local file whole or not at all."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A new name beside `path` to write to: at the end the file takes the name `path` in one step.

    A reader, and whoever comes after a kill, finds at `path` what was there before or all that was written, never a
    part of it. After an exception nothing is left beside it. The disk is not waited for: a machine that loses power may
    lose the file.
    """
    fresh = path.with_name(f".{secrets.token_hex(8)}.part")  # nothing of `path`: TensorBoard reads what is named so
    try:
        yield fresh
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)
