"""What has to happen before a run's worker starts: its model is fetched, looked at, pinned and fitted to. No torch.

The worker then reads local files only. A model from elsewhere goes into the run's own `source/`, and source.json
says where it came from and what it is; a run that has them is gone on with without looking anywhere else.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.config.schema import BUILT_IN, RunConfig
from utils.data.tokenizing.tokenizer import TRAINED, Tokenizer, tokens_needed
from utils.jobs.describe import clean_facts, describe_model
from utils.jobs.find_model import FoundModel, find_model, links
from utils.jobs.prepare_data import prepare_data
from utils.models.diagnose import diagnose
from utils.models.findings import ExportError, Finding
from utils.models.source import PUBLISHED, check_files
from utils.models.source_files import SOURCE
from utils.runs.folder import RunFolder
from utils.runs.model_folder import model_folder
from utils.runtime.files import fsync_folder, sha256_file

# What a checkpoint has beside the model.
OF_A_RUN = ("optimizer.safetensors", "training.safetensors", "trainer.json", "MANIFEST.json")
BYTES = 256  # the tokens a byte or a trained tokenizer has at least


@dataclass(frozen=True)
class Prepared:
    """A run that can be started."""

    config: RunConfig
    """The settings, fitted to a model from elsewhere."""
    found: FoundModel | None = None
    """That model, as it lies here."""
    facts: dict[str, Any] | None = None
    """What it is."""
    notes: tuple[str, ...] = ()
    """Which settings were changed to fit it, and what is odd about it; empty for a run that goes on."""

    @property
    def own_tokenizer(self) -> Path | None:
        """The folder with the tokenizer that the model came with; an export comes with none."""
        return own_tokenizer(self.found)

    def check_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Raise ValueError if the model has no row for some of the tokens."""
        if self.facts is not None:
            check_rows(str(self.facts["task"]), int(self.facts["vocab_size"]), tokenizer)


def prepare(config: RunConfig) -> Prepared:
    """Fetch and look at the model that `config` names, fit the settings to it, and pin the data.

    Raises ValueError or FileNotFoundError (an ExportError for a broken export) with what is wrong and what to do.
    """
    run = RunFolder(config.run_dir)
    was = run.config() if run.exists() else None
    if config.model.kind in BUILT_IN:
        data, notes = prepare_data(config.data, None, was and was.data)
        return Prepared(config.model_copy(update={"data": data}), notes=() if was else notes)
    known = run.read_json("source")
    if known and was and was.model.ref == config.model.ref:
        found, odd = FoundModel(config.model.ref, config.model.kind, str(run.path / SOURCE)), []
        try:
            _check_unchanged(run, dict(known["files"]))
            facts, revision = clean_facts(known["facts"]), config.model.revision or str(known["source"]["revision"])
        except (KeyError, TypeError):
            raise ValueError(f"{run.path / 'source.json'} is damaged: start another run") from None
    else:
        began = was.model.revision if was and was.model.ref == config.model.ref else ""  # killed while it was copied
        found, odd = _find(config, config.model.revision or began)
        facts = describe_model(found, config.model.trust_sha256)
        revision = found.source.revision if found.source else ""
        odd += [Finding(**finding) for finding in facts.get("findings", ())]
    data, notes = prepare_data(config.data, own_tokenizer(found), was and was.data)
    fitted, changes = fit(config.model_copy(update={"data": data}), facts)
    notes += changes + _unlike(fitted) + tuple(f"warning: {finding}" for finding in odd)
    model = fitted.model.model_copy(update={"revision": revision})
    notes = () if was else notes  # said when it began
    return Prepared(fitted.model_copy(update={"model": model}), found, facts, notes)


def own_tokenizer(found: FoundModel | None) -> Path | None:
    """The folder of a model that comes with a tokenizer: one of the Hub, or of ours."""
    return Path(found.where) if found is not None and found.kind in ("hub", "folder") else None


def check_rows(task: str, rows: int, tokenizer: Tokenizer) -> None:
    """Raise ValueError if a table of `rows` has no row for some token, or for the mask that a masked model needs."""
    size = tokenizer.vocab_size
    needed = size if tokenizer.mask_id is not None else tokens_needed(task, size)
    if rows < size:
        raise ValueError(
            f"the model has a table of {rows:,} tokens and the tokenizer needs {size:,}: "
            "lower data.vocab_size, or choose another data.tokenizer"
        )
    if rows < needed:
        raise ValueError(
            f"data.task={task} needs {needed:,} tokens, the mask being the last, and the model's table has {rows:,}: "
            f"lower data.vocab_size to {rows - 1}"
        )


def place(prepared: Prepared) -> None:
    """Copy the model's files into the run folder, which holds its settings already, and say so in source.json."""
    run, found = RunFolder(prepared.config.run_dir), prepared.found
    if found is None or run.read_json("source"):
        return
    target, building = run.path / SOURCE, run.path / f"{SOURCE}.tmp"
    shutil.rmtree(building, ignore_errors=True)
    links(Path(found.where))  # what they may lead to is copied, and nothing else that is not in the folder
    shutil.copytree(found.where, building, ignore=_left_out)
    shutil.rmtree(target, ignore_errors=True)
    building.rename(target)
    fsync_folder(run.path)
    files = {str(path.relative_to(target)): sha256_file(path) for path in sorted(target.rglob("*")) if path.is_file()}
    told = found.source.to_dict() if found.source else {"ref": found.name, "kind": found.kind, "revision": ""}
    run.write_json("source", {"source": told, "facts": prepared.facts, "files": files})


def fit(config: RunConfig, facts: dict[str, Any]) -> tuple[RunConfig, tuple[str, ...]]:
    """The settings with lengths and vocabulary lowered to what the model can take, and each change in words.

    Raises ValueError where its vocabulary has no room for any tokenizer of that kind.
    """
    data, rows, longest = config.data, int(facts["vocab_size"]), int(facts["block_size"])
    room = rows - tokens_needed(str(facts["task"]), 0)
    changes: dict[str, Any] = {}
    if data.tokenizer in (*TRAINED, "byte") and room < BYTES:
        changes["tokenizer"] = "char"
    elif data.tokenizer in TRAINED and room == BYTES:
        changes["tokenizer"] = "byte"
    elif data.tokenizer in TRAINED and not 0 < data.vocab_size <= room:
        changes["vocab_size"] = room
    if data.seq_len > longest:
        changes["seq_len"] = longest
    if data.task == "auto" and facts["task"] == "classification":
        changes["task"] = "classification"  # so that a column of classes is looked for
    table = f"its table has {rows:,} rows" + (", one of them for the mask" if room < rows else "")
    why = {"seq_len": f"it reads at most {longest:,} tokens", "task": "it is a classifier"}
    notes = [f"fitted to the model: data.{key}={value}: {why.get(key, table)}" for key, value in changes.items()]
    return config.model_copy(update={"data": data.model_copy(update=changes)}), tuple(notes)


def _unlike(config: RunConfig) -> tuple[str, ...]:
    """A warning where trained weights of the Hub, which know tokens by number, are to read other ones."""
    model, tokenizer = config.model, config.data.tokenizer
    if model.kind != "hub" or not model.pretrained or tokenizer not in (*TRAINED, "byte", "char"):
        return ()
    return (
        f"warning: the weights of {model.ref} know other tokens than data.tokenizer={tokenizer} makes: choose theirs "
        "(data.tokenizer=model, or owner/name of the Hub), or draw new weights with model.pretrained=false",
    )


def _find(config: RunConfig, revision: str) -> tuple[FoundModel, list[Finding]]:
    """The model, and what the text of an export warns of. Raises ExportError where it shows that it cannot work."""
    kind, ref = config.model.kind, config.model.ref
    if kind == "folder":
        return FoundModel(ref, kind, str(model_folder(Path(ref)))), []
    found = find_model(ref, revision)
    if found.kind != kind:
        raise ValueError(f"model.ref={ref} is a model of kind {found.kind}: set model.kind={found.kind}")
    odd: list[Finding] = []
    if found.kind == "builder":
        where = Path(found.where)
        odd = diagnose((where / PUBLISHED[0]).read_text(encoding="utf-8"), check_files(where))
        if any(finding.severity == "fail" for finding in odd):
            raise ExportError(odd)
    return found, odd


def _left_out(folder: str, names: list[str]) -> set[str]:
    """What is not copied: what a checkpoint has beside the model, links to folders, pipes and devices."""
    paths = {name: Path(folder, name) for name in names}
    plain = {name for name, path in paths.items() if path.is_file() or (path.is_dir() and not path.is_symlink())}
    return {*names} - (plain - {*OF_A_RUN})


def _check_unchanged(run: RunFolder, files: dict[str, str]) -> None:
    for name, sha256 in files.items():
        path = run.path / SOURCE / name
        if not path.is_file() or sha256_file(path) != sha256:
            raise ValueError(f"{path} is not as it was when this run began: bring it back, or start another run")
