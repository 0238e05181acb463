"""What is in the data: sizes, vocabulary, entropy floor, quality, drift, and one example as the model will see it."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.config.schema import DataConfig
from utils.data.batching.examples import Blocks
from utils.data.documents import SIDES, Document
from utils.data.looking.drift import MOST_TEXT, DriftReport, drift, sample_tokens
from utils.data.looking.quality import QualityReport, check_documents, words_of
from utils.data.looking.report import page
from utils.data.reading.sources import parts_of, pin, prepare_source, read_documents
from utils.data.storing.token_store import Progress, TokenStore, open_store
from utils.runtime.files import write_atomic
from utils.runtime.table import Table

if TYPE_CHECKING:
    from utils.data.looking.preview import Preview

QUICK = 2_000_000  # characters that are looked through where nobody asked for more: half a second
FEW = 5_000  # validation tokens; what fewer differ by is chance
FEW_TOKENS, FEW_ROWS = 1000, 30  # in the validation text: with fewer it says little about a model
BATCH = 16  # examples that are padded together, where a number has to be assumed
NAMES = {"train": "to train on", "val": "to validate on", "test": "to test on"}
PROSE = "white-space:pre-wrap;max-width:84ch;font-size:13px;line-height:1.45;margin:6px 0"
PACKED = {"documents": "whole documents, packed", "one document per row": "one document each"}


@dataclass(frozen=True)
class DataSummary:
    """The data of a run, ready to be shown."""

    config: DataConfig
    store: TokenStore
    quality: QualityReport | None = None
    drifts: tuple[DriftReport, ...] = ()
    notes: tuple[str, ...] = ()
    """Which settings were filled in."""

    def to_dict(self) -> dict[str, Any]:
        """Numbers for a machine; sizes in characters and tokens, the floor in nats per token."""
        store, sizes = self.store, dict[str, int]()
        for side in SIDES:
            ids = store.side(side)
            sizes[f"{side}_documents"] = ids.documents
            sizes[f"{side}_characters"] = store.info["characters"][side]
            sizes[f"{side}_tokens"] = len(ids)
        return {
            "source": self.source,
            "kind": store.kind,
            "tokenizer": self.tokenizer,
            "vocab_size": store.tokenizer.vocab_size,
            "bytes_per_token": store.bytes_per_token(),
            **sizes,
            "classes": store.labels,
            "entropy_floor": store.entropy_floor,
            "examples": self.examples,
            "fingerprint": store.fingerprint,
            "store": str(store.folder),
            "warnings": store.warnings(),
            "quality": self.quality.to_dict() if self.quality else None,
            "drift": [report.to_dict() for report in self.drifts],
        }

    @property
    def source(self) -> str:
        """Where the text is from, in a word or two."""
        parts = parts_of(self.config)
        return " + ".join(
            part.path or "/".join(filter(None, (part.name, part.config))) or part.source for part in parts
        )

    @property
    def tokenizer(self) -> str:
        """Which tokenizer it is: what data.tokenizer says, or what that came to mean."""
        wanted = self.config.tokenizer
        return str(self.store.tokenizer.origin.get("kind", wanted)) if wanted == "auto" else wanted

    @cached_property
    def examples(self) -> dict[str, Any]:
        """How the training text is cut into examples: `packing`, `rows`, `fill` (share that is not padding), ..."""
        store, config = self.store, self.config
        if store.kind == "text" and config.packing != "documents" and config.task != "classification":
            rows = sum(
                Blocks(ids, config.seq_len, [0], [(0, len(ids))]).n
                for ids in (store.side("train", part) for part in range(len(store.weights)))
            )
            return {
                "packing": "blocks",
                "rows": rows,
                "fill": 1.0,
                "examples_per_epoch": rows,
                "seq_len": config.seq_len,
            }
        from utils.data.batching.tasks import build_batches  # needs torch

        task = "causal" if config.task == "auto" else config.task
        train, _ = build_batches(store, config, BATCH, 1, 0, task, packs_documents=True, supports_attention_mask=True)
        return train.describe()

    def table(self) -> Table:
        """The numbers for a person."""
        n = self.to_dict()
        words = f"{n['tokenizer']}, {n['vocab_size']} different tokens, {n['bytes_per_token']:.2f} bytes of text each"
        rows = [("source", str(n["source"])), ("tokenizer", words)]
        for side, name in NAMES.items():
            if n[f"{side}_tokens"] or side != "test":
                many = n[f"{side}_documents"]
                of = f", {many:,} documents" if many > 1 else ""
                rows.append((name, f"{n[f'{side}_tokens']:,} tokens ({n[f'{side}_characters']:,} characters{of})"))
        rows += [("classes", f"{len(n['classes'])}: {', '.join(n['classes'][:12])}")] if n["classes"] else []
        rows.append(("examples", self._examples_told()))
        if n["entropy_floor"] is not None:
            floor = f"{n['entropy_floor']:.4f} nats per token, predicting the next: no model can expect less"
            rows.append(("best possible loss", floor))
        known = [*n["warnings"], *filter(None, [self._chance()])]
        rows += [("to know", "\n".join(known))] if known else []
        rows += [("settled", "\n".join(self.notes))] if self.notes else []
        return Table([*rows, ("fingerprint", n["fingerprint"][:16]), ("kept in", n["store"])])

    def _chance(self) -> str:
        """Says so where a small data.val_fraction keeps so little that the validation loss is mostly chance."""
        val, rows = self.store.val, self.store.kind != "text"
        many, least, noun = (val.documents, FEW_ROWS, "documents") if rows else (len(val), FEW_TOKENS, "tokens")
        decided = bool(self.config.val_from) or any(part.source == "hub" for part in parts_of(self.config))
        if many >= least or decided or self.config.val_fraction >= 0.1:
            return ""
        return (
            f"only {many:,} {noun} to validate on, whose loss is mostly chance: data.val_fraction=0.1 keeps a tenth of "
            "the text for it"
        )

    def _examples_told(self) -> str:
        e = self.examples
        told = f"{e['examples_per_epoch']:,} an epoch, of {e['seq_len']:,} tokens"
        if e["packing"] == "blocks":
            return told
        told = f"{e['examples_per_epoch']:,} an epoch, of at most {e['seq_len']:,} tokens: {PACKED[e['packing']]}, "
        told += f"{100 * e['fill']:.0f} % of the places filled"
        cut, left = e["documents_cut"], e["documents_left_out"]
        told += f"; {cut:,} documents are longer and cut" if cut else ""
        return told + (f"; {left:,} have nothing to learn in reach" if left else "")

    def text(self) -> str:
        """The beginning of the training text."""
        return self.store.tokenizer.decode(self.store.train[: self.config.seq_len].tolist())

    @cached_property
    def shown(self) -> "Preview | None":
        """One example as training gets it, where not every token is simply followed by its label; else None."""
        if self.store.kind == "text" and self.config.task in ("auto", "causal"):
            return None
        from utils.data.looking.preview import preview_store

        return preview_store(self.store, self.config, 1)

    def example(self, tokens: int = 12) -> Table:
        """The first tokens of the text: what goes in, and what should come out."""
        ids = self.store.train[: tokens + 1].tolist()
        read = [repr(self.store.tokenizer.token_text(i))[1:-1] for i in ids]
        rows = [("input token", *read[:-1]), ("input id", *map(str, ids[:-1])), ("label", *read[1:])]
        return Table(
            rows, note="The label of each token is the token after it, for a model that predicts the next one."
        )

    def _reports(self) -> list[QualityReport | DriftReport]:
        return [*([self.quality] if self.quality else []), *self.drifts]

    def __repr__(self) -> str:
        reports = "".join(f"{report}\n\n" for report in self._reports())
        return f"{self.table()}\n\n{reports}" + str(self.shown or f"{self.text()}\n\n{self.example()}")

    def _repr_html_(self) -> str:
        return self._numbers() + (self.shown._repr_html_() if self.shown else self._beginning())

    def _numbers(self) -> str:
        return self.table()._repr_html_() + "".join(report._repr_html_() for report in self._reports())

    def _beginning(self) -> str:
        text = f'<div style="{PROSE}">{escape(self.text().strip())} ...</div>'
        return text + self.example()._repr_html_()

    def save(self, path: Path | str) -> Path:
        """Write all of it, and examples as a model gets them, as one page; returns its path."""
        from utils.data.looking.preview import preview_store

        body = self._numbers() + ("" if self.shown else self._beginning())
        body += preview_store(self.store, self.config, 2)._repr_html_()
        write_atomic(Path(path), page(f"Data: {self.source}", body))
        return Path(path)


def inspect_data(
    config: DataConfig,
    own_tokenizer: Path | None = None,
    quality: bool = True,
    against: Path | None = None,
    limit_characters: int = QUICK,
    progress: Progress | None = None,
) -> DataSummary:
    """Open (or make) the token store of `config` and look into it.

    Args:
        own_tokenizer: folder with the tokenizer of a trained model, where data.tokenizer means it.
        quality: whether to look through the text itself, too, and to compare validation with training text.
        against: a file or folder of text to compare with the training text.
        limit_characters: how much of the text is looked through.

    Raises as `open_store` does.
    """
    config, notes = pin(config)
    store = open_store(config, own_tokenizer, progress)
    if not quality and against is None:
        return DataSummary(config, store, notes=notes)
    prepare_source(config, progress)
    reference = sample_tokens(store.train, store.tokenizer)
    drifts = []
    if quality and len(store.val) >= FEW:
        drifts.append(drift(reference, store.val, store.tokenizer, "Validation beside training text"))
    if against is not None:
        drifts.append(drift(reference, texts_at(against, config), store.tokenizer, f"{against} beside training text"))
    looked = None
    if quality:
        limit_characters = min(limit_characters, max(1, sum(store.info["characters"].values())))
        enough = _enough(config, limit_characters)
        documents = _of_each_side(read_documents(enough), limit_characters, progress)
        looked = check_documents(documents, limit_characters, store.tokenizer)
        if enough != config:
            looked = replace(looked, note=f"Looked at {enough.size:,} characters of the stories only.")
    return DataSummary(config, store, looked, tuple(drifts), notes)


def _enough(config: DataConfig, limit: int) -> DataConfig:
    """The settings with fewer stories: they are all of a kind, and two million characters take a second to write."""
    if all(part.source != "stories" for part in parts_of(config)):
        return config
    return config.model_copy(update={"size": min(config.size, max(1000, limit // 4))})


def _of_each_side(documents: Iterable[Document], limit: int, progress: Progress | None) -> Iterator[Document]:
    """The documents, but no more than a quarter of `limit` characters of those held out, which come first."""
    read, held = 0, 0
    for document in documents:
        size = len(words_of(document))
        if document.side in ("val", "test") and held > limit // 4:
            continue
        held += size if document.side in ("val", "test") else 0
        read += size
        if progress:
            progress("looking through the text", min(read, limit), limit)
        yield document


def describe_store(store: TokenStore, config: DataConfig) -> DataSummary:
    """What there is to say without looking at the text again."""
    return DataSummary(config, store)


def texts_at(path: Path, config: DataConfig) -> Iterator[str]:
    """Texts of a file or folder of any kind that can be learned from, cut as those of `config` are."""
    from utils.data.reading.collect import settings_for

    found = dict(word.removeprefix("data.").split("=", 1) for word in settings_for(path))
    settings = {**found, "document": config.document, "text_field": config.text_field, "on_bad_row": config.on_bad_row}
    left = MOST_TEXT
    for document in read_documents(DataConfig.model_validate(settings)):
        yield words_of(document)
        left -= len(document.text)
        if left <= 0:
            break
