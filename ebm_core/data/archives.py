"""Unpacking what was downloaded: nothing outside the folder, no links out of it, no device, no more than expected."""

import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ebm_core.errors import DataError

MAX_UNPACKED_BYTES = 4 * 2**30
"""Of one archive; the largest that is published for us (textures) unpacks to 0.7 GB."""
MAX_MEMBERS = 200_000
_one_at_a_time = threading.RLock()


@contextmanager
def filtered_archives() -> Iterator[None]:
    """Every tar archive that is unpacked inside, by torchvision too, goes through tarfile's data filter, with a bound.

    DataError on a Python without that filter; tarfile.FilterError or DataError for an archive that is refused.
    """
    if not hasattr(tarfile, "data_filter"):
        raise DataError("this Python's tarfile unpacks anything anywhere: use Python 3.11.4 or newer")
    kind: Any = tarfile.TarFile
    seen = [0, 0]

    def judge(member: tarfile.TarInfo, path: str) -> tarfile.TarInfo | None:
        seen[0] += member.size
        seen[1] += 1
        if seen[0] > MAX_UNPACKED_BYTES or seen[1] > MAX_MEMBERS:
            raise DataError(
                f"the archive unpacks to more than {MAX_UNPACKED_BYTES / 2**30:g} GiB or {MAX_MEMBERS} files: refused"
            )
        return tarfile.data_filter(member, path)

    with _one_at_a_time:
        before = kind.extraction_filter
        kind.extraction_filter = staticmethod(judge)
        try:
            yield
        finally:
            kind.extraction_filter = before
