"""Which token store a run learns from, noted in its data.json: a worker needs neither the text nor a network."""

from pathlib import Path

from utils.data.storing.token_store import TokenStore, store_at
from utils.runs.folder import RunFolder


def remember_store(run: RunFolder, store: TokenStore) -> None:
    """Note the store in the run's data.json."""
    run.write_json("data", {"store": str(store.folder.resolve()), "fingerprint": store.fingerprint})


def remembered_store(run: RunFolder) -> TokenStore | None:
    """The store noted there, if it is still there, whole, and the same."""
    known = run.read_json("data")
    if not isinstance(known.get("store"), str):
        return None
    store = store_at(Path(known["store"]))
    return store if store is not None and store.fingerprint == known.get("fingerprint") else None
