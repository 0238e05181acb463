"""Datasets of the Hugging Face Hub: pinned to a commit, downloaded or streamed, read as Documents; knows no tokens."""

import gzip
import inspect
import json
import os
import random
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from utils.config.schema import DataConfig, SourceConfig
from utils.data.documents import Document, Skipped
from utils.data.reading.hub_client import (
    Progress,
    Unreachable,
    datasets_library,
    endpoint,
    fetch,
    script_refused,
    talking_to_hub,
)
from utils.data.reading.hub_rows import arrow_rows, read_rows, schema_kinds, spooled_rows
from utils.runtime.files import cache_dir, fsync_folder, sha256_json

COMMIT = re.compile(r"[0-9a-f]{40}")
NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
ROWS = 1_000  # rows that are held at a time
VAL_NAMES = ("validation", "valid", "val", "dev")
TEST_NAME = "test"
LISTED = 40  # names that a message lists


# --- pinning ---------------------------------------------------------------------------------------------------------


def pin_hub(part: SourceConfig, config: DataConfig) -> tuple[dict[str, str], dict[str, str], tuple[str, ...]]:
    """What only the Hub knows of a dataset: (settings of the part, settings of the data, each change in words).

    The part gets `revision` (a commit), `config` where it was left out, and `name` where the dataset was renamed; the
    data gets `val_from` and `test_from` where they are empty, the dataset has such splits and there is no mixture.
    A pinned part whose rows are in the cache needs no network. Raises ValueError, saying what to do.
    """
    _check_name(part)
    local = _cached(part)
    if part.config and (part.config in local or (part.streaming and _spool(part, config, part.split).exists())):
        return _settings(part, config, _known(part, part.config, local.get(part.config)))
    try:
        return _settings(part, config, _ask(part))
    except Unreachable as error:
        if len(local) == 1 and part.config in ("", *local):
            [(name, folder)] = local.items()
            return _settings(part, config, _known(part, name, folder))
        raise Unreachable(f"{error}, and the dataset is not in the cache: {_instead(part)}") from error


class Found(NamedTuple):
    """What a dataset turned out to be: `why` its configuration was chosen, and the splits of that ([]: not known)."""

    name: str
    revision: str
    config: str
    why: str
    splits: list[str]


def hub_key(part: SourceConfig) -> dict[str, Any]:
    """JSON: what decides the rows, but for the split. Raises ValueError if the revision is not a commit."""
    if not COMMIT.fullmatch(part.revision):
        raise ValueError(
            f"data.name={part.name} is not pinned to a commit (data.revision={part.revision}): pin it first, or write "
            f"the commit's 40 characters, found at {endpoint()}/datasets/{part.name}/commits"
        )
    return {"name": part.name, "config": part.config, "revision": part.revision, "streaming": part.streaming}


def _check_name(part: SourceConfig) -> None:
    if not NAME.fullmatch(part.name):
        raise ValueError(f"data.name={part.name} is not the name of a dataset: write it as owner/name")
    if Path(part.name).is_dir():  # `datasets` would read it instead
        raise ValueError(
            f"data.name={part.name} is also a folder here: to read its files use data.path={part.name} with "
            "data.source=text, csv, jsonl or parquet; to read the Hub's dataset start in another folder"
        )


def _known(part: SourceConfig, config: str, folder: Path | None) -> Found:
    """What the cache knows."""
    splits = list(_info(folder)["splits"]) if folder else []
    return Found(part.name, part.revision, config, "the one in the cache", splits)


def _ask(part: SourceConfig) -> Found:
    """What the Hub knows."""
    with talking_to_hub(part.name, part.revision) as datasets:
        import huggingface_hub

        api = huggingface_hub.HfApi()
        info = api.dataset_info(part.name, revision=part.revision or None, timeout=30)
        if f"{info.id.split('/')[-1]}.py" in {file.rfilename for file in info.siblings or ()}:
            raise script_refused(part.name)
        if info.gated:
            api.auth_check(info.id, repo_type="dataset")
        names = datasets.get_dataset_config_names(info.id, revision=info.sha)
        name, why = part.config or (names[0] if len(names) == 1 else ""), "its only configuration"
        if not name:
            name = datasets.get_dataset_default_config_name(info.id, revision=info.sha) or ""
            why = "the configuration it means where none is named"
        if name not in names:
            problem = f"has no configuration {part.config}" if part.config else "has several configurations"
            raise ValueError(f"data.name={part.name} {problem}: set data.config to one of {_listed(names)}")
        splits = [str(split) for split in _builder(datasets, info.id, name, str(info.sha)).config.data_files or ()]
        return Found(info.id, str(info.sha), name, why, splits)


def _settings(
    part: SourceConfig, config: DataConfig, found: Found
) -> tuple[dict[str, str], dict[str, str], tuple[str, ...]]:
    """What of the settings changes, given what the dataset is."""
    splits, wanted = found.splits, [("data.split", part.split)]
    if not config.mixture:
        own = [("data.val_from", config.val_from), ("data.test_from", config.test_from)]
        wanted += [(key, value) for key, value in own if not _is_file(value)]
    for key, value in wanted:
        if splits and value and value not in splits:
            raise ValueError(f"{key}={value}: data.name={part.name} has no such split: it has {_listed(splits)}")
    new = {"name": found.name, "revision": found.revision, "config": found.config}
    mine = {key: value for key, value in new.items() if value != getattr(part, key)}
    whole: dict[str, str] = {}
    if not config.mixture:
        free = [split for split in splits if split not in (part.split, config.val_from, config.test_from)]
        if not config.val_from and (named := [split for split in VAL_NAMES if split in free]):
            whole["val_from"] = named[0]
        if not config.test_from and not config.test_fraction and TEST_NAME in free:
            whole["test_from"] = TEST_NAME
    commit = f"the commit of {part.revision}" if part.revision else "the newest commit"
    why = {"name": "its name now", "revision": commit, "config": found.why}
    notes = [f"data.{key}={value}: {why[key]}" for key, value in mine.items()]
    notes += [f"data.{key}={value}: the dataset's own" for key, value in whole.items()]
    return mine, whole, tuple(notes)


def _is_file(place: str) -> bool:
    """Whether validation texts are in files beside the dataset: told from a split's name by a dot or a slash."""
    return bool({".", "/"} & set(place)) and Path(place).expanduser().exists()


def _builder(datasets: Any, name: str, config: str, revision: str) -> Any:
    """The builder of exactly this commit: without a network `datasets` takes any other that is in the cache."""
    builder = datasets.load_dataset_builder(name, config or None, revision=revision)
    if Path(builder.cache_dir).name != revision:
        raise Unreachable(f"data.name={name}: {endpoint()} cannot be reached (no answer)")
    return builder


# --- the cache -------------------------------------------------------------------------------------------------------


def _dataset_cache(name: str) -> Path:
    datasets = datasets_library()
    from datasets.naming import camelcase_to_snakecase

    *owner, last = name.split("/")
    return Path(datasets.config.HF_DATASETS_CACHE) / "___".join([*owner, camelcase_to_snakecase(last)])


def _cached(part: SourceConfig) -> dict[str, Path]:
    """Folders of arrow files that `datasets` made of this commit, by configuration."""
    if not COMMIT.fullmatch(part.revision):
        return {}
    found = _dataset_cache(part.name).glob(f"*/*/{part.revision}/dataset_info.json")
    return {file.parents[2].name: file.parent for file in sorted(found)}


def _info(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "dataset_info.json").read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def _instead(part: SourceConfig) -> str:
    """What can be done without the Hub."""
    kept = sorted({file.parent.name for file in _dataset_cache(part.name).glob("*/*/*/dataset_info.json")})
    kept = [commit for commit in kept if COMMIT.fullmatch(commit)]
    if kept and part.revision not in kept:
        return f"these commits of it are, so set data.revision={' or '.join(kept)}; or connect and try again"
    return "connect to the network and try again (HF_ENDPOINT may name a mirror), or use data.source=text with a file"


# --- preparing -------------------------------------------------------------------------------------------------------


def prepare_hub(part: SourceConfig, config: DataConfig, split: str, progress: Progress | None = None) -> None:
    """Have the rows of `split` on this disk: downloaded, or, with data.streaming, as many as are asked for.

    `part` is pinned. What is there already is not asked for again, and a download that broke off goes on.
    """
    hub_key(part)
    if part.streaming:
        if not (spool := _spool(part, config, split)).exists():
            _take(part, config, split, spool, progress)
        return
    if part.config in _cached(part):
        return
    try:
        with talking_to_hub(part.name, part.revision) as datasets:
            builder = _builder(datasets, part.name, part.config, part.revision)
            prefix = f"hf://datasets/{part.name}@{part.revision}/"
            files = [str(file) for files in (builder.config.data_files or {}).values() for file in files]
            paths = sorted({file.removeprefix(prefix) for file in files if file.startswith(prefix)})
            fetch(part.name, part.revision, paths, progress)
            if progress:
                progress(f"unpacking {part.name}", 0, 0)
            if getattr(builder.config, "batch_size", 0) is None:  # else a whole row group is unpacked at a time
                builder.config.batch_size = ROWS
            builder.download_and_prepare(verification_mode="no_checks")  # the card's counts may be old; hashes are not
    except Unreachable as error:
        raise Unreachable(f"{error}, and the dataset is not in the cache: {_instead(part)}") from error


def _spool(part: SourceConfig, config: DataConfig, split: str) -> Path:
    """Where the documents taken from a stream are kept."""
    key = hub_key(part) | {"split": split, "seed": config.seed, "buffer": config.shuffle_buffer}
    return cache_dir() / "streams" / f"{sha256_json(key | {'documents': config.max_documents})[:32]}.jsonl.gz"


def _take(part: SourceConfig, config: DataConfig, split: str, spool: Path, progress: Progress | None) -> None:
    """Write the first rows of the shuffled stream to `spool`: a line of what the columns are, then a line per row."""
    spool.parent.mkdir(parents=True, exist_ok=True)
    temporary = spool.with_name(f"{spool.name}.tmp-{os.getpid()}")
    try:
        with (
            talking_to_hub(part.name, part.revision) as datasets,
            temporary.open("wb") as raw,
            gzip.GzipFile("", "wb", 4, raw, mtime=0) as packed,
        ):
            _builder(datasets, part.name, part.config, part.revision)
            stream = datasets.load_dataset(
                part.name, part.config or None, split=split, revision=part.revision, streaming=True
            )
            one = {"max_buffer_input_shards": 1} if "max_buffer_input_shards" in _parameters(stream.shuffle) else {}
            files = stream.shuffle(seed=config.seed, buffer_size=1, **one)  # only the order of the files
            rows = _shuffled(files, config.seed, config.shuffle_buffer)  # the library's own differs between versions
            first = list(islice(rows, min(ROWS, config.max_documents)))
            kinds, classes = schema_kinds(_schema(stream.features, first))
            names = [name for name, kind in kinds.items() if kind != "other"]
            packed.write(_line({"kinds": kinds, "classes": classes, "columns": names}))
            for i, row in enumerate((*first, *islice(rows, config.max_documents - len(first))), 1):
                packed.write(_line([row[name] for name in names]))
                if progress and i % 100 == 0:
                    progress(f"taking documents of {part.name}", i, config.max_documents)
        fsync_folder(spool.parent)
        os.replace(temporary, spool)
    finally:
        temporary.unlink(missing_ok=True)


def _shuffled(rows: Iterable[Any], seed: int, size: int) -> Iterator[Any]:
    """The rows, each drawn at random from a buffer of `size` that the next one then fills up again."""
    rng, waiting = random.Random(f"stream {seed}"), list(islice(rows := iter(rows), size))
    for row in rows:
        drawn = rng.randrange(size)
        yield waiting[drawn]
        waiting[drawn] = row
    rng.shuffle(waiting)
    yield from waiting


def _parameters(function: Any) -> Mapping[str, Any]:
    return inspect.signature(function).parameters


def _schema(features: Any, rows: list[dict[str, Any]]) -> Any:
    """The arrow schema of a stream: what the dataset says, or what its first rows look like."""
    import pyarrow

    return features.arrow_schema if features else pyarrow.Table.from_pylist(rows).schema


def _listed(names: list[str]) -> str:
    return ", ".join(names[:LISTED]) + (f" ... ({len(names)} of them)" if len(names) > LISTED else "")


def _line(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=True).encode() + b"\n"


# --- reading ---------------------------------------------------------------------------------------------------------


def hub_documents(
    part: SourceConfig, config: DataConfig, split: str, skipped: Skipped | None = None
) -> Iterator[Document]:
    """The documents of one split, in the dataset's order (a stream's: as it was shuffled), from this disk alone.

    Bad rows are added to `skipped`; where it is None the first raises BadRow. Raises ValueError where `prepare_hub`
    has not been, or where the columns do not say what they are.
    """
    if part.streaming:
        rows = spooled_rows(_there(_spool(part, config, split), part))
    else:
        rows = arrow_rows(_folder(part), split)
    return read_rows(rows, part, config, f"{part.name} {split}", skipped)


def _folder(part: SourceConfig) -> Path:
    hub_key(part)
    local = _cached(part)
    if part.config in local:
        return local[part.config]
    if not part.config and len(local) == 1:
        return next(iter(local.values()))
    raise _not_prepared(part)


def _there(spool: Path, part: SourceConfig) -> Path:
    if not spool.exists():
        raise _not_prepared(part)
    return spool


def _not_prepared(part: SourceConfig) -> ValueError:
    return ValueError(
        f"data.name={part.name} at {part.revision[:12]} is not in the cache: run `tbt data prepare` with the same "
        "settings, where there is a network"
    )
