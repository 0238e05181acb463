"""From a token store to what a model is called with: one batch, one draw, each a pure function of (seed, number).

Knows what a model can be told (documents, attention mask), but no model.
"""

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from utils.config.schema import DataConfig
from utils.data.batching.batches import Once, Running
from utils.data.batching.examples import Blocks, Documents
from utils.data.batching.mixture import Mixture
from utils.data.batching.order import Bucketed, Order, Shuffled
from utils.data.batching.questions import IGNORED, Batch, Causal, Classified, Masked, Question, Seq2Seq, Shown
from utils.data.storing.tokens import Tokens
from utils.runtime.randomness import derive_seed

if TYPE_CHECKING:
    from utils.data.storing.token_store import TokenStore

__all__ = ["IGNORED", "Batch", "TaskBatches", "build_batches", "eval_on", "packing_of"]

MEASURED = 1 << 16  # examples whose padding is counted
Bounds = list[tuple[int, int]]  # first token and end of each part


class TaskBatches:
    """Batches of a task: the examples of `source`, asked as `question` does.

    A step's global batch is `batch_size x grad_accum_steps` examples, whatever the number of processes.
    """

    def __init__(self, source: Running | Once, question: Question | None = None, grad_accum_steps: int = 1) -> None:
        self.source, self.question, self.grad_accum_steps = source, question or Causal(), grad_accum_steps
        self.batch_size, self.seq_len = source.batch_size, source.seq_len

    def __len__(self) -> int:
        if isinstance(self.source, Running):
            raise TypeError("training batches never end")
        return len(self.source)

    @property
    def tokens_per_batch(self) -> int:
        """Positions of a whole micro-batch, those that stay empty included."""
        return self.batch_size * self.seq_len

    @property
    def tokens_per_epoch(self) -> int:
        """Positions of one pass over the text, counted the same way: their ratio is the batches of an epoch."""
        return self.source.tokens_per_epoch

    @property
    def examples_per_epoch(self) -> int:
        """Examples of one pass over the text; of a mixture, as many as its parts have together."""
        return self.source.examples_per_epoch

    def examples(self, numbers: np.ndarray) -> Batch:
        """The examples `numbers` (B,) of the run (of an evaluation: of its side), as one batch."""
        return self.question.batch(self.source.cut.ids, self.source.spans(numbers), numbers)

    def batch(self, k: int) -> Batch:
        """Micro-batch k of a run in one process; batch k of an evaluation."""
        return self.examples(self.source.numbers(k))

    def micro_batches(self, step: int, rank: int = 0, world: int = 1) -> list[Batch]:
        """What process `rank` of `world` learns from in optimizer step `step`: at most `batch_size` examples each.

        All processes together learn from the same examples for any `world`, and for any way of writing the global
        batch as batch_size x grad_accum_steps. A process may have nothing to do: then the list is empty.
        """
        size = self.batch_size * self.grad_accum_steps
        own = np.array_split(step * size + np.arange(size), world)[rank]
        return [self.examples(own[i : i + self.batch_size]) for i in range(0, len(own), self.batch_size)]

    def describe(self) -> dict[str, Any]:
        """What the examples are, in numbers: rows, the share of their positions that hold tokens, what is cut."""
        cut, told = self.source.cut, {"examples_per_epoch": self.examples_per_epoch, "seq_len": self.seq_len}
        if not isinstance(cut, Documents):
            return {"packing": "blocks", "rows": cut.n, "fill": 1.0, **told}
        return {
            "packing": "documents" if cut.packed else "one document per row",
            "rows": cut.n,
            "fill": round(self._fill(cut), 4),
            "documents": cut.ids.documents,
            "documents_cut": cut.cut,
            "documents_left_out": cut.left_out,
            **told,
        }

    def _fill(self, cut: Documents) -> float:
        """Share of the positions that hold tokens, in the first examples."""
        numbers = np.arange(min(cut.n, MEASURED))
        filled = np.minimum(cut.filled[self.source.order.at(numbers)[0]], cut.longest)
        if cut.packed:
            return float(filled.sum() / (len(filled) * self.seq_len))
        widths = np.maximum.reduceat(filled, numbers[:: self.batch_size])
        rows = np.diff([*numbers[:: self.batch_size], len(numbers)])
        return float(filled.sum() / (widths * rows).sum())


def packing_of(store: "TokenStore", data: DataConfig, task: str) -> str:
    """blocks or documents: what data.packing=auto means here. Raises ValueError for what a task cannot do."""
    if task == "classification" and store.kind != "labelled":
        raise ValueError(
            f"data.task=classification needs a label for each text, and these have none (kind: {store.kind}): "
            "name the column that holds it with data.label_field (source csv, jsonl, parquet or hub)"
        )
    packing = data.packing
    if packing == "auto":
        packing = "blocks" if store.kind == "text" else "documents"
    if packing == "blocks" and (task == "classification" or (task == "seq2seq" and store.kind == "pairs")):
        what = "a class belongs to a whole document" if task == "classification" else "an answer belongs to its prompt"
        raise ValueError(f"data.packing=blocks does not fit data.task={task}, as {what}: use data.packing=documents")
    return packing


def build_batches(
    store: "TokenStore",
    data: DataConfig,
    batch_size: int,
    grad_accum_steps: int,
    seed: int,
    task: str,
    *,
    packs_documents: bool,
    supports_attention_mask: bool,
    start_id: int | None = None,
    n_classes: int = 0,
    eval_batch_size: int | None = None,
    eval_batches: int = 0,
) -> tuple[TaskBatches, TaskBatches]:
    """Training and validation batches of a run.

    `packs_documents`, `supports_attention_mask`, `start_id` and `n_classes` are the model's: whether it takes
    documents=(B, T) and attention_mask=(B, T), the token its decoder starts from, and how many classes it tells apart.
    Raises ValueError when the store does not fit the task.
    """
    question = _question(store, data, task, seed, packs_documents, supports_attention_mask, start_id, n_classes)
    train = TaskBatches(
        _running(store, data, batch_size, grad_accum_steps, seed, task, packs_documents), question, grad_accum_steps
    )
    val = eval_on(
        store,
        data,
        "val",
        eval_batch_size or batch_size,
        task,
        packs_documents=packs_documents,
        supports_attention_mask=supports_attention_mask,
        start_id=start_id,
        n_classes=n_classes,
        max_batches=eval_batches,
    )
    return train, val


def eval_on(
    store: "TokenStore",
    data: DataConfig,
    side: str,
    batch_size: int,
    task: str,
    *,
    packs_documents: bool,
    supports_attention_mask: bool,
    start_id: int | None = None,
    n_classes: int = 0,
    max_batches: int = 0,
) -> TaskBatches:
    """One side of the store once, every label exactly once: `max_batches` of its batches, evenly spread, or all (0).

    Running text comes in order; documents alone in a row from short to long, which needs least padding. The hidden
    tokens of a masked model are always the same ones.
    """
    question = _question(store, data, task, 0, packs_documents, supports_attention_mask, start_id, n_classes)
    ids, bounds = _side(store, side)
    if packing_of(store, data, task) == "blocks":
        blocks = Blocks(ids, data.seq_len, None, bounds, _ahead(store, task))
        _check(blocks, side)
        return TaskBatches(Once(blocks, batch_size, max_batches), question)
    rows = _documents(store, data, ids, bounds, task, packs_documents, 0)
    _check(rows, side)
    items = None if rows.packed else np.argsort(rows.filled, kind="stable")
    return TaskBatches(Once(rows, batch_size, max_batches, items), question)


def _running(
    store: "TokenStore", data: DataConfig, batch_size: int, grad_accum_steps: int, seed: int, task: str, packs: bool
) -> Running:
    """The training side's examples in their order."""
    ids, bounds = _side(store, "train")
    seeds = [seed] if len(bounds) == 1 else [derive_seed(seed, "part", part) for part in range(len(bounds))]
    cut: Blocks | Documents
    if packing_of(store, data, task) == "blocks":
        cut = Blocks(ids, data.seq_len, seeds, bounds, _ahead(store, task))
    else:
        cut = _documents(store, data, ids, bounds, task, packs, seed)
    counts = np.diff(cut.firsts)
    _check(cut, "train")
    if empty := [f"data.mixture[{part}]" for part in np.flatnonzero(counts == 0)]:
        raise ValueError(f"{', '.join(empty)}: no training document has a token to learn: give it text or leave it out")
    sorted_first = data.curriculum == "length"
    orders: list[Order] = []
    for part, count in enumerate(counts):
        lengths = None
        if sorted_first and isinstance(cut, Documents):
            lengths = cut.lengths[cut.firsts[part] : cut.firsts[part + 1]]
        orders.append(Shuffled(int(count), seeds[part], lengths))
    order = orders[0] if len(orders) == 1 else Mixture(orders, store.weights, cut.firsts[:-1].tolist(), seed)
    if isinstance(cut, Documents) and not cut.packed:
        left_alone = order.per_epoch if sorted_first else 0
        order = Bucketed(
            order, cut.filled, batch_size * grad_accum_steps, seed, epochs=len(orders) == 1, left_alone=left_alone
        )
    return Running(cut, order, batch_size)


def _documents(
    store: "TokenStore", data: DataConfig, ids: Tokens, bounds: Bounds, task: str, packs: bool, seed: int
) -> Documents:
    whole = task == "classification" or (task == "seq2seq" and ids.targets is not None)
    return Documents(
        ids,
        data.seq_len,
        bounds,
        ahead=_ahead(store, task),
        packed=packs and task == "causal",
        by_length=data.curriculum == "length",
        whole=whole,
        answers_only=task == "causal" or (task == "seq2seq" and ids.targets is not None),
        seed=seed,
    )


def _ahead(store: "TokenStore", task: str) -> int:
    """How many tokens an example has more than inputs: what predicts the next token needs one."""
    return int(task == "causal" or (task == "seq2seq" and store.kind != "pairs"))


def _side(store: "TokenStore", side: str) -> tuple[Tokens, Bounds]:
    """All tokens of a side, and where those of each part lie."""
    sizes = [len(store.side(side, part)) for part in range(max(1, len(store.weights)))]
    ends = np.cumsum([0, *sizes]).tolist()
    return store.side(side), list(pairwise(ends))


def _question(
    store: "TokenStore",
    data: DataConfig,
    task: str,
    seed: int,
    packs: bool,
    attention_mask: bool,
    start_id: int | None,
    n_classes: int,
) -> Question:
    t = store.tokenizer
    pad = next((i for i in (t.pad_id, t.end_id) if i is not None), 0)
    shown = Shown(packs, attention_mask)
    if task == "masked":
        special = tuple(sorted(set(t.special_tokens.values())))
        return Masked(
            mask_id=t.vocab_size if t.mask_id is None else t.mask_id,
            fraction=data.mask_fraction,
            others=np.setdiff1d(np.arange(t.vocab_size), special),
            special=special,
            words=t.begins_word() if data.whole_words else None,
            seed=derive_seed(seed, "mask"),
            pad=pad,
            shown=shown,
        )
    if task == "seq2seq":
        return Seq2Seq(data.seq_len, start_id, store.kind == "pairs", pad, attention_mask, tuple(t.suffix))
    if task == "classification":
        if n_classes and n_classes < len(store.labels):
            raise ValueError(
                f"the model tells {n_classes} classes apart and these documents have {len(store.labels)} "
                f"({', '.join(map(str, store.labels[:8]))}{' ...' if len(store.labels) > 8 else ''}): use a model with "
                f"at least {len(store.labels)} classes, or join some with a data.hook"
            )
        return Classified(data.seq_len, tuple(t.suffix), pad, shown)
    return Causal(pad, shown)


def _check(cut: Blocks | Documents, side: str) -> None:
    if cut.n:
        return
    if not len(cut.ids):
        wanted = {"train": "a smaller data.val_fraction", "val": "data.val_fraction or data.val_from"}
        told = wanted.get(side, "data.test_fraction or data.test_from")
        raise ValueError(f"there are no {side} documents: set {told}")
    raise ValueError(
        f"no {side} document has a token to learn: each has one token or none, or an empty answer. Give it other text"
    )
