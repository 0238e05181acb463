"""What is in the data: sizes, vocabulary, entropy floor, and one example as the model will see it."""

from dataclasses import dataclass
from typing import Any

from utils.config.schema import DataConfig
from utils.data.token_store import TokenStore, open_store
from utils.runtime.table import Table


@dataclass(frozen=True)
class DataSummary:
    """The data of a run, ready to be shown."""

    config: DataConfig
    store: TokenStore

    def to_dict(self) -> dict[str, Any]:
        """Numbers for a machine; sizes in characters and tokens, the floor in nats per token."""
        store, info = self.store, self.store.info
        return {
            "source": self.config.path or self.config.source,
            "tokenizer": self.config.tokenizer,
            "vocab_size": store.tokenizer.vocab_size,
            "train_characters": info["train_characters"],
            "train_tokens": len(store.train),
            "val_characters": info["val_characters"],
            "val_tokens": len(store.val),
            "entropy_floor": store.entropy_floor,
            "fingerprint": store.fingerprint,
        }

    def table(self) -> Table:
        """The numbers for a person."""
        n = self.to_dict()
        rows = [
            ("source", str(n["source"])),
            ("tokenizer", f"{n['tokenizer']}, {n['vocab_size']} different tokens"),
            ("to train on", f"{n['train_tokens']:,} tokens ({n['train_characters']:,} characters)"),
            ("to validate on", f"{n['val_tokens']:,} tokens ({n['val_characters']:,} characters)"),
        ]
        if n["entropy_floor"] is not None:
            rows.append(
                (
                    "best possible loss",
                    f"{n['entropy_floor']:.4f} nats per token, predicting the next: no model can expect less",
                )
            )
        return Table(rows)

    def text(self) -> str:
        """The beginning of the training text."""
        return self.store.tokenizer.decode(self.store.train[: self.config.seq_len].tolist())

    def example(self, tokens: int = 12) -> Table:
        """The first tokens of the text: what goes in, and what should come out."""
        ids = self.store.train[: tokens + 1].tolist()
        decode = self.store.tokenizer.decode
        rows = [
            ("input token", *(repr(decode([i]))[1:-1] for i in ids[:-1])),
            ("input id", *map(str, ids[:-1])),
            ("label", *(repr(decode([i]))[1:-1] for i in ids[1:])),
        ]
        return Table(
            rows, note="The label of each token is the token after it, for a model that predicts the next one."
        )

    def __repr__(self) -> str:
        return f"{self.table()}\n\n{self.text()}\n\n{self.example()}"

    def _repr_html_(self) -> str:
        from html import escape

        text = f'<div style="white-space:pre-wrap;max-width:84ch;margin:6px 0">{escape(self.text().strip())} ...</div>'
        return self.table()._repr_html_() + text + self.example()._repr_html_()


def inspect_data(config: DataConfig) -> DataSummary:
    """Open (or make) the token store of `config` and look into it. Raises as `open_store` does."""
    return DataSummary(config, open_store(config))
