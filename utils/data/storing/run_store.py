"""Which token store a run learns from, noted in its data.json: a worker needs neither the text nor a network."""

from pathlib import Path

from utils.data.storing.token_store import TokenStore, store_at
from utils.runs.folder import RunFolder


def remember_store(run: RunFolder, store: TokenStore) -> None:
    """Note the store in the run's data.json."""
    run.write_json("data", {"store": str(store.folder.resolve()), "fingerprint": store.fingerprint})


def remembered_store(run: RunFolder, below: Path | None = None) -> TokenStore | None:
    """The store noted there, if it is still there, whole, and the same; and lies `below` a folder, if one is given.

    None for one below the run's own folder: there a model's code may have written it, to whoever reads it next.
    """
    known = run.read_json("data")
    if not isinstance(known.get("store"), str):
        return None
    folder = Path(known["store"])
    try:
        place = folder.resolve()
        if place.is_relative_to(run.path.resolve()) or not (below is None or place.is_relative_to(below.resolve())):
            return None
    except (OSError, ValueError):  # no name that a folder can have
        return None
    store = store_at(folder)
    return store if store is not None and store.fingerprint == known.get("fingerprint") else None
