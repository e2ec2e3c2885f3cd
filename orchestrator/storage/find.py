"""Finding a stored run by name, folder or URI."""

from ebm_core.errors import ConfigError
from orchestrator.storage.run_store import Run, RunStore


def open_run(where: str, storage: str) -> Run:
    """The run of that name below `storage`, or at that folder or URI; ConfigError lists what there is."""
    plain = where.partition("?")[0].rstrip("/")
    if "/" in plain:
        storage = where.partition("?")[1] + where.partition("?")[2]  # the store keeps the URI's options
        folder, _, name = plain.rpartition("/")
        storage = (folder or "/") + storage
    else:
        name = plain
    store = RunStore(storage)
    known = store.runs()
    if name not in known:
        shown = f"there are {', '.join(known[:8])}" if known else "it has no runs"
        raise ConfigError(f"run {name!r} is not in {store.uri}: {shown}")
    return store.run(name)
