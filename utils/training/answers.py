"""Answers that a model writes to questions it has not learned, and how near they come to the wanted ones."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from torch import nn

from utils.config.schema import DataConfig
from utils.data.batching.questions import IGNORED
from utils.data.batching.tasks import TaskBatches
from utils.data.storing.store_tokenizer import separator_of
from utils.data.storing.token_store import TokenStore
from utils.inference.generate import generate_ids, stop_ids_of

SHOWN = 3  # answers of each evaluation that are kept to be read
ROOM = 2  # an answer may be this many times as long as the longest that is wanted


@dataclass(frozen=True)
class Question:
    """What a model is given, and what it should answer."""

    ids: list[int]  # what it reads
    wanted: list[int]  # the answer, without what ends it
    most: int  # tokens the answer may have


@dataclass(frozen=True)
class Answer:
    """A prompt, what the model wrote, and what it should have written."""

    prompt: str
    answer: str
    reference: str


@dataclass(frozen=True)
class Answers:
    """Answers to some questions, scored together."""

    bleu: float
    """0 to 100: word sequences shared with the references (Papineni et al. 2002, https://aclanthology.org/P02-1040;
    words and smoothing as in Post 2018, https://aclanthology.org/W18-6319)."""
    chrf: float
    """0 to 100: the same for sequences of characters, for any language (Popovic 2015,
    https://aclanthology.org/W15-3049)."""
    written: list[Answer]

    def metrics(self) -> dict[str, float]:
        """A part of a row of the run's metrics."""
        return {"val/bleu": self.bleu, "val/chrf": self.chrf}


def scores() -> Any:
    """The library that scores. Raises ValueError with the pip line where it is missing."""
    try:
        import sacrebleu
    except ImportError as error:
        raise ValueError(
            "scoring answers (train.answers_every_eval, --answers) needs sacrebleu: pip install sacrebleu"
        ) from error
    return sacrebleu


class Exam:
    """The first `count` questions of a side, each asked in the way in which the model was trained.

    Questions are the prompts of pairs and chats (the first thing an assistant says in them), or, for a seq2seq model of
    running text, the first half of each block. `batches` are the side's. Raises ValueError where nothing is asked, or
    nothing can be scored.
    """

    def __init__(
        self, store: TokenStore, data: DataConfig, task: str, on: str, batches: TaskBatches, count: int
    ) -> None:
        scores()
        if task not in ("causal", "seq2seq") or (task == "causal" and store.kind not in ("pairs", "chat")):
            raise ValueError(
                f"there are no answers to compare with (task {task}, documents of kind {store.kind}): "
                "train.answers_every_eval and --answers need a seq2seq model, pairs (data.target_field) or chats"
            )
        self.tokenizer = store.tokenizer
        if task == "seq2seq" and store.kind != "pairs":
            self._stops: frozenset[int] = frozenset()  # nothing says where half a text ends
            self.questions = [_half(batches, i) for i in range(min(count, batches.source.cut.n))]
        else:
            found = list(islice(_pairs(store, on), count))
            self._stops = self._ends(data, store.kind, [wanted for _, wanted in found])
            answers = [_until(wanted, self._stops) for _, wanted in found]
            most = min(data.seq_len, ROOM * max(map(len, answers), default=0) + 1)
            suffix = self.tokenizer.suffix[: data.seq_len - 1] if task == "seq2seq" else []
            longest = data.seq_len - len(suffix) if task == "seq2seq" else None
            self.questions = [
                Question([*prompt[:longest], *suffix], wanted, most)
                for (prompt, _), wanted in zip(found, answers, strict=True)
            ]
        if not self.questions:
            raise ValueError(f"the {on} text has no pair with a prompt and an answer: nothing can be asked")

    def _ends(self, data: DataConfig, kind: str, answers: list[list[int]]) -> frozenset[int]:
        """What ends an answer: what ends a text, or else the newline between documents, if no answer has one inside."""
        if kind == "chat":
            special = set(self.tokenizer.special_tokens.values())
            return stop_ids_of(self.tokenizer) | {answer[-1] for answer in answers if answer[-1] in special}
        between, _ = separator_of(self.tokenizer, data, kind)
        inside = any(token in between for answer in answers for token in answer[: -len(between) or None])
        return stop_ids_of(self.tokenizer) | (frozenset(between) if len(between) == 1 and not inside else frozenset())

    def take(self, model: nn.Module) -> Answers:
        """Let `model` write: the likeliest token each time, so the same weights give the same answers."""
        written = [self._answer(model, question) for question in self.questions]
        said, wanted = [each.answer for each in written], [each.reference for each in written]
        library = scores()
        bleu, chrf = library.corpus_bleu(said, [wanted]), library.corpus_chrf(said, [wanted])
        return Answers(float(bleu.score), float(chrf.score), written)

    def _answer(self, model: nn.Module, question: Question) -> Answer:
        t = self.tokenizer
        settings: dict[str, Any] = {"vocab_size": t.vocab_size, "stop_ids": self._stops, "mask_id": t.mask_id}
        new = list(generate_ids(model, question.ids, question.most, temperature=0.0, **settings))
        prompt, answer, reference = (t.decode(ids).strip() for ids in (question.ids, new, question.wanted))
        return Answer(prompt, answer, reference)


def build_answering(
    store: TokenStore,
    data: DataConfig,
    task: str,
    batches: TaskBatches,
    count: int,
    event: Callable[..., None],
) -> Callable[[nn.Module, int], Mapping[str, float]]:
    """What an evaluation of a model after a step does: writes `count` answers, tells of three, gives back scores.

    `event` is told of the three. Raises ValueError, at once, as `Exam` does.
    """
    if not count:
        return lambda model, step: {}
    exam = Exam(store, data, task, "val", batches, count)

    def answer(model: nn.Module, step: int) -> Mapping[str, float]:
        found = exam.take(model)
        for each in found.written[:SHOWN]:
            event("answer", step=step, text=each.answer, prompt=each.prompt, reference=each.reference)
        return found.metrics()

    return answer


def _pairs(store: TokenStore, on: str) -> Iterator[tuple[list[int], list[int]]]:
    """Prompt and answer of each document, with what ends the document; those without one of them are left out."""
    side = store.side(on)
    for d in range(side.documents):
        ids, end = side.document(d).tolist(), None
        if side.targets is not None:
            begin = int(side.targets[d])
        else:
            assert side.answers is not None
            marks = np.asarray(side.answers[int(side.starts[d]) : int(side.starts[d + 1])])
            begin = int(marks.argmax()) if marks.any() else len(ids)
            end = begin + int((marks[begin:] == 0).argmax()) if (marks[begin:] == 0).any() else None
        if ids[:begin] and ids[begin:end]:
            yield ids[:begin], ids[begin:end]


def _half(batches: TaskBatches, i: int) -> Question:
    """Example i of running text: the model is given its first half."""
    batch = batches.examples(np.array([i]))
    (source, _), labels = batch.inputs, batch.labels
    shown = batch.extra.get("attention_mask")
    wanted = labels[labels != IGNORED].tolist()
    return Question((source if shown is None else source[shown > 0]).flatten().tolist(), wanted, len(wanted))


def _until(ids: list[int], stops: frozenset[int]) -> list[int]:
    """What comes before the first of `stops`."""
    return ids[: next((i for i, token in enumerate(ids) if token in stops), None)]
