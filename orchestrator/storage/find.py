"""Finding a stored run by name, folder or URI."""

from ebm_core.errors import ConfigError
from orchestrator.storage.run_store import Run, RunStore


def split_place(where: str, storage: str) -> tuple[str, str]:
    """(storage, name) of what is called `where`: a name below `storage`, a folder, or a URI, whose options stay."""
    plain, question, options = where.partition("?")
    folder, slash, name = plain.rstrip("/").rpartition("/")
    return (f"{folder or '/'}{question}{options}" if slash else storage), name


def open_run(where: str, storage: str) -> Run:
    """The run of that name below `storage`, or at that folder or URI; ConfigError lists what there is."""
    storage, name = split_place(where, storage)
    store = RunStore(storage)
    known = store.runs()
    if name not in known:
        shown = f"there are {', '.join(known[:8])}" if known else "it has no runs"
        raise ConfigError(f"run {name!r} is not in {store.uri}: {shown}")
    return store.run(name)
