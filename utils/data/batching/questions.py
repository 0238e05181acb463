"""What is asked of each task: from spans of tokens to the inputs, labels and extras of one batch; no order, no store.

Shapes: B examples, T positions. A label of -100 is not counted; label t belongs to logit t.
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from torch import Tensor, from_numpy

from utils.data.batching.examples import Laid, Spans, lay
from utils.data.batching.order import Draws
from utils.data.storing.tokens import Tokens

IGNORED = -100
NEVER = np.uint64(2**64 - 1)


class Batch(NamedTuple):
    """`model(*inputs, **extra)` gives the logits of `labels`."""

    inputs: tuple[Tensor, ...]
    labels: Tensor  # (B, T) int64, -100 = not counted; classification: (B,)
    extra: dict[str, Tensor]  # documents or attention_mask, (B, T) int64; empty where the rows say it all


class Question(Protocol):
    """Makes a batch of spans."""

    def batch(self, ids: Tokens, spans: Spans, numbers: np.ndarray) -> Batch:
        """The batch of the examples `numbers` (B,), whose tokens are `spans` of `ids`."""
        ...


@dataclass(frozen=True)
class Shown:
    """What a model can be told about its rows."""

    documents: bool = False  # which document each token is of: extra["documents"]
    attention_mask: bool = False  # what is no padding: extra["attention_mask"]

    def of(self, laid: Laid, spans: Spans) -> dict[str, Tensor]:
        """Rows of documents always say so; blocks only where they are shorter than the others."""
        if self.documents:
            return {"documents": from_numpy(laid.documents)} if spans.documents is not None else {}
        if self.attention_mask and (spans.documents is not None or laid.padded):
            return {"attention_mask": from_numpy((laid.documents > 0).astype(np.int64))}
        return {}


@dataclass(frozen=True)
class Causal:
    """The next token, at every position of a document but its last; of pairs and chats only the answers' tokens."""

    pad: int = 0
    shown: Shown = Shown()

    def batch(self, ids: Tokens, spans: Spans, numbers: np.ndarray) -> Batch:
        """Inputs (B, T), labels (B, T)."""
        laid = lay(ids, spans, self.pad)
        labels = laid.following.copy()
        if laid.padded:
            labels[laid.documents == 0] = IGNORED
        if ids.targets is not None or ids.answers is not None:
            labels[~_learned(ids, laid.where + 1)] = IGNORED
        return Batch((from_numpy(laid.inputs.copy()),), from_numpy(labels), self.shown.of(laid, spans))


def _learned(ids: Tokens, where: np.ndarray) -> np.ndarray:
    """Which of the tokens at `where` belong to an answer: bool, shaped alike."""
    learned: np.ndarray
    if ids.targets is not None:
        document = np.minimum(np.searchsorted(ids.starts, where, "right") - 1, len(ids.targets) - 1)
        learned = where >= ids.starts[document] + ids.targets[document]
    else:
        assert ids.answers is not None
        learned = ids.answers.at(np.minimum(where, len(ids) - 1)) == 1
    return learned


@dataclass(frozen=True, eq=False)
class Masked:
    """Tokens that were hidden, as in BERT (Devlin et al. 2019, section 3.1, https://arxiv.org/abs/1810.04805).

    About `fraction` of an example's tokens are asked for, at least one; of those 80 % are replaced by `mask_id`, 10 %
    by one of `others` and 10 % left alone. Which ones follows from (seed, example), whatever the batch. With `words`
    (which tokens begin a word, which end inside one: bool (V,) each) all tokens of a word are asked for together.
    """

    mask_id: int
    fraction: float = 0.15
    others: np.ndarray | None = None  # ids that may replace a token; None = all below mask_id
    special: tuple[int, ...] = ()  # ids that are never hidden
    words: tuple[np.ndarray, np.ndarray] | None = None
    seed: int = 0
    pad: int = 0
    shown: Shown = Shown()

    def batch(self, ids: Tokens, spans: Spans, numbers: np.ndarray) -> Batch:
        """Inputs (B, T), labels (B, T)."""
        laid, draws = lay(ids, spans, self.pad, ahead=0), Draws(self.seed)
        inputs, width = laid.inputs, laid.inputs.shape[1]
        may = laid.documents > 0
        if self.special:
            may &= ~np.isin(inputs, self.special)
        order = draws.bits(numbers, width, 0)
        if self.words is not None:
            order = np.take_along_axis(order, _word_starts(laid, may, self.words), 1)
        chosen = _about(np.where(may, order, NEVER), may, self.fraction)
        kind = draws.bits(numbers, width, 1)
        share = (kind >> np.uint64(32)).astype(np.float64) / 2**32
        pool = np.arange(self.mask_id) if self.others is None else self.others
        other = pool[((kind & np.uint64(2**32 - 1)) * np.uint64(len(pool)) >> np.uint64(32)).astype(np.int64)]
        hidden = np.where(share < 0.8, self.mask_id, np.where(share < 0.9, other, inputs))
        asked = np.where(chosen, inputs, IGNORED)
        return Batch((from_numpy(np.where(chosen, hidden, inputs)),), from_numpy(asked), self.shown.of(laid, spans))


def _word_starts(laid: Laid, may: np.ndarray, words: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """For each position, the one where its word begins: (B, T). A document or a special token ends a word."""
    begins, inside = words
    starts = begins[laid.inputs]
    starts[:, 1:] |= ~inside[laid.inputs[:, :-1]] | ~may[:, 1:] | ~may[:, :-1]
    starts[:, 1:] |= laid.documents[:, 1:] != laid.documents[:, :-1]
    starts[:, 0] = True
    found: np.ndarray = np.maximum.accumulate(np.where(starts, np.arange(starts.shape[1]), 0), axis=1)
    return found


def _about(order: np.ndarray, may: np.ndarray, fraction: float) -> np.ndarray:
    """The first words of each row in `order` (B, T), until about `fraction` of what may be hidden: bool (B, T)."""
    wanted = np.maximum(1, np.rint(fraction * may.sum(1)).astype(np.int64))[:, None]
    last = np.take_along_axis(np.sort(order, axis=1), wanted - 1, 1)
    before, upto = order < last, order <= last
    few, many = before.sum(1, keepdims=True), upto.sum(1, keepdims=True)
    nearer = (few == 0) | (many - wanted <= wanted - few)  # whether the last word brings it nearer
    chosen: np.ndarray = np.where(nearer, upto, before) & may
    return chosen


@dataclass(frozen=True)
class Seq2Seq:
    """How a text goes on: a pair's answer from its prompt, or the second half of a text from the first.

    What is read ends with `suffix`, as the answer does: a T5 knows by </s> that it has read all (Raffel et al. 2020,
    https://arxiv.org/abs/1910.10683). The decoder starts from `start_id`, or from the last token that was read: then
    no special token is needed.
    """

    seq_len: int
    start_id: int | None = None
    pairs: bool = False
    pad: int = 0
    attention_mask: bool = False
    suffix: tuple[int, ...] = ()

    def batch(self, ids: Tokens, spans: Spans, numbers: np.ndarray) -> Batch:
        """Inputs: source (B, S), decoder (B, T); labels (B, T)."""
        if self.pairs:
            assert ids.targets is not None
            assert spans.documents is not None
            before = ids.targets[spans.documents]  # (B,) tokens of the prompt
            after = np.minimum(spans.lengths - before, self.seq_len)
        else:
            before = np.maximum(1, spans.lengths // 2)
            after = spans.lengths + 1 - before
        half = max(1, spans.width // 2) if spans.width else 0
        suffix = self.suffix[: self.seq_len - max(1, half)]
        read = np.minimum(before, self.seq_len - len(suffix))
        source = lay(ids, spans._replace(lengths=read, width=half), self.pad, ahead=0)
        inputs, mask = _ended(source, read, suffix, self.pad)
        width = spans.width + 1 - half if spans.width else 0
        target = lay(ids, spans._replace(starts=spans.starts + before, lengths=after, width=width), self.pad, ahead=0)
        labels, start = target.inputs.copy(), self.start_id
        decoder = np.empty_like(labels)
        last = np.take_along_axis(inputs, np.maximum(0, mask.sum(1, keepdims=True) - 1), 1)[:, 0]
        decoder[:, 0], decoder[:, 1:] = last if start is None else start, labels[:, :-1]
        labels[target.documents == 0] = IGNORED
        extra = {}
        if self.attention_mask and (spans.documents is not None or source.padded):
            mask[:, 0] = True  # an empty prompt is one token of padding: attention to nothing is not a number
            extra["attention_mask"] = from_numpy(mask.astype(np.int64))
        return Batch((from_numpy(inputs), from_numpy(decoder)), from_numpy(labels), extra)


def _ended(laid: Laid, lengths: np.ndarray, suffix: tuple[int, ...], pad: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of one span each with `suffix` behind it, and what is no padding: (B, T) int64 and bool."""
    inputs = np.pad(laid.inputs, ((0, 0), (0, len(suffix))), constant_values=pad)
    inputs[np.arange(len(inputs))[:, None], lengths[:, None] + np.arange(len(suffix))] = suffix
    return inputs, np.arange(inputs.shape[1]) < (lengths + len(suffix))[:, None]


@dataclass(frozen=True)
class Classified:
    """The class of a document, of which at most `seq_len` tokens are read; `suffix` ends those that are cut, too."""

    seq_len: int
    suffix: tuple[int, ...] = ()
    pad: int = 0
    shown: Shown = Shown()

    def batch(self, ids: Tokens, spans: Spans, numbers: np.ndarray) -> Batch:
        """Inputs (B, T), labels (B,)."""
        assert ids.labels is not None
        assert spans.documents is not None
        laid = lay(ids, spans._replace(lengths=np.minimum(spans.lengths, self.seq_len)), self.pad, ahead=0)
        inputs, suffix = laid.inputs.copy(), self.suffix[-self.seq_len :]
        if suffix:
            cut = np.flatnonzero(spans.lengths > self.seq_len)
            inputs[cut, self.seq_len - len(suffix) :] = suffix
        labels = ids.labels[spans.documents].astype(np.int64)
        return Batch((from_numpy(inputs),), from_numpy(labels), self.shown.of(laid, spans))
