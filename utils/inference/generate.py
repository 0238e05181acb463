"""Continue a text, one token at a time; leaves the model's mode and torch's random state as they were."""

import math
from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from utils.inference.kv_cache import Cache, make_cache
from utils.inference.sampling import check_sampling, sample
from utils.models.folder import unwrap

END_OF_TURN = "<|im_end|>"  # ends what one side of a chat says (ChatML)
UNFINISHED = "\ufffd"  # what a decoder writes for bytes that are not, or not yet, a character


class Tokenizer(Protocol):
    """What `generate_text` asks of a tokenizer.

    Where it has special tokens, it says so by `end_id`, `mask_id`, `special_tokens` (ids by name), `prefix` and
    `suffix`.
    """

    @property
    def vocab_size(self) -> int: ...

    def encode(self, text: str, /) -> list[int]: ...

    def decode(self, ids: list[int], /) -> str: ...


def window_start(n_tokens: int, block_size: int) -> int:
    """Where the part of a text of `n_tokens` begins that the model is shown; it is at most `block_size` long.

    Beyond `block_size` the start hops by half of it. A start that crept along would change every position,
    and so every cached key, at every step; a hop empties the cache once per half block.
    """
    hop = max(1, block_size // 2)
    return hop * math.ceil(max(0, n_tokens - block_size) / hop)


def generate_ids(
    model: nn.Module,
    ids: Sequence[int] | Tensor,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    use_cache: bool = True,
    vocab_size: int = 0,
    stop_ids: frozenset[int] = frozenset(),
    mask_id: int | None = None,
) -> Iterator[int]:
    """Stream up to `max_new_tokens` ids that continue one text.

    A causal model scores the token after the text, a masked one the mask `mask_id` put behind it (None: the first id
    that is no token), and a seq2seq one reads `ids` and writes: from its `start_id` on, or, if it has none, from the
    last of `ids`, as it was trained. `vocab_size` is the tokenizer's, in tokens: ids from there on (padding of the
    table, the mask) are never drawn; 0 means the model's.

    The first of `stop_ids` to be drawn ends the text and is not part of it; a masked model fills masks, and goes on.

    `ids` is a list of token ids, or a (T,) or (1, T) tensor. `temperature`, `top_k` and `top_p` are as in
    `sample`; the same `seed` draws the same text. `use_cache=False` is the slow path, the fast one's oracle, and
    the only one for a model from elsewhere.

    The model is in eval mode from the first token to the last (or until the iterator is closed); then each of
    its modules is back in the mode it was in. Raises ValueError at once, before the first token, if the text
    is empty, an id is outside the model's vocabulary, a setting is out of range, or the model is a classifier.
    """
    model = unwrap(model)  # a compiled model would recompile for every length
    text = [int(i) for i in (_single(ids) if isinstance(ids, Tensor) else ids)]
    vocab_size = vocab_size or model.shape.vocab_size
    if task_of(model) == "classification":
        raise ValueError("this model is a classifier: it says what a text is, and writes none")
    if not text:
        raise ValueError("the text to continue is empty: it needs at least one token")
    if not 0 <= min(text) <= max(text) < vocab_size:
        wrong = next(i for i in text if not 0 <= i < vocab_size)
        raise ValueError(f"token id {wrong} is outside this model's vocabulary of {vocab_size} tokens")
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens={max_new_tokens} must be a number of tokens, 0 or more")
    check_sampling(temperature, top_k, top_p)
    mask_id = vocab_size if mask_id is None else mask_id
    stop_ids = frozenset() if task_of(model) == "masked" else stop_ids
    return _stream(
        model, text, max_new_tokens, temperature, top_k, top_p, seed, use_cache, vocab_size, stop_ids, mask_id
    )


def task_of(model: nn.Module) -> str:
    """What the model is made for: causal (if it does not say), masked, seq2seq or classification."""
    return str(getattr(model, "task", "causal"))


def _single(ids: Tensor) -> list[int]:
    if ids.dim() == 2 and ids.shape[0] != 1:
        raise ValueError(f"ids has {ids.shape[0]} rows, and one text is continued at a time: pass one row")
    return ids.flatten().tolist()


def _stream(
    model: nn.Module,
    text: list[int],
    max_new_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    seed: int,
    use_cache: bool,
    vocab_size: int,
    stop_ids: frozenset[int],
    mask_id: int,
) -> Iterator[int]:
    # Tokens are drawn on the CPU: the same seed then draws alike on every device.
    generator = torch.Generator().manual_seed(seed)
    cache = make_cache(model) if use_cache else None
    unbounded = getattr(model, "unbounded", False)
    start, n_prompt = 0, len(text)
    in_training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        for _ in range(max_new_tokens):
            previous, start = start, 0 if unbounded else window_start(len(text), model.shape.block_size)
            if cache is not None and start != previous:
                cache.reset()
            # Not around the yield: whoever takes the token may want gradients. And not inference_mode: what a model
            # keeps of its forward pass, a table of places or a mask, could not be trained with afterwards.
            with torch.no_grad():
                if task_of(model) == "causal":
                    logits = _next_logits(model, text, start, cache)
                else:
                    logits = _next_logits_of_task(model, text, n_prompt, mask_id)
                logits = logits[:, :vocab_size]
                token = int(sample(logits, temperature, top_k, top_p, generator))
            if token in stop_ids:
                return
            text.append(token)
            yield token
    finally:
        for module in in_training:
            module.training = True


def _next_logits(model: nn.Module, text: list[int], start: int, cache: Cache | None) -> Tensor:
    """Scores of the token after `text`, shown from `start` on, whose beginning may be cached: (1, V), on the CPU."""
    unread = text[start if cache is None else start + cache.length :]
    input_ids = torch.tensor([unread], device=next(model.parameters()).device)  # (1, T)
    logits = model(input_ids) if cache is None else model(input_ids, cache)
    return logits[:, -1].float().cpu()


def _next_logits_of_task(model: nn.Module, text: list[int], n_prompt: int, mask_id: int) -> Tensor:
    """The same for a model that does not simply go on: (1, V), on the CPU. Its window slides, for nothing is cached."""
    device, longest = next(model.parameters()).device, model.shape.block_size
    if task_of(model) == "masked":
        shown = [*text[max(0, len(text) - longest + 1) :], mask_id]
        return model(torch.tensor([shown], device=device))[:, -1].float().cpu()
    source = torch.tensor([text[:n_prompt][-longest:]], device=device)  # (1, S)
    start = getattr(model, "start_id", None)
    begun = [text[n_prompt - 1] if start is None else start, *text[n_prompt:]]
    written = torch.tensor([begun[-longest:]], device=device)  # (1, T)
    return model(source, written)[:, -1].float().cpu()


def generate_text(
    model: nn.Module,
    tokenizer: Tokenizer,
    prompt: str,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    use_cache: bool = True,
) -> Iterator[str]:
    """Stream the text that continues `prompt` (not the prompt itself) in pieces of whole characters.

    The pieces together are exactly `tokenizer.decode` of all new ids. What the tokenizer puts before every text it puts
    before the prompt, and the text is over where the tokenizer says so (`stop_ids_of`). Arguments and errors are those
    of `generate_ids`; an empty prompt is an empty text.
    """
    ids = tokenizer.encode(prompt)
    # What a seq2seq model reads is a whole text, with its end.
    end = getattr(tokenizer, "suffix", ()) if task_of(model) == "seq2seq" else ()
    new = generate_ids(
        model,
        [*getattr(tokenizer, "prefix", ()), *ids, *end] if ids else [],
        max_new_tokens,
        temperature,
        top_k,
        top_p,
        seed,
        use_cache,
        vocab_size=tokenizer.vocab_size,
        stop_ids=stop_ids_of(tokenizer),
        mask_id=getattr(tokenizer, "mask_id", None),
    )
    return stream_text(tokenizer, new)


def stop_ids_of(tokenizer: Tokenizer) -> frozenset[int]:
    """The ids at which a text is over: the end of a text, of a turn in a chat, and what the tokenizer puts after a text
    (a BERT's has no other end), where there are such."""
    special = getattr(tokenizer, "special_tokens", {})
    found = (getattr(tokenizer, "end_id", None), special.get(END_OF_TURN), *getattr(tokenizer, "suffix", ())[-1:])
    return frozenset(token for token in found if token is not None)


def stream_text(tokenizer: Tokenizer, ids: Iterator[int]) -> Iterator[str]:
    """Decode ids while they arrive; a character spread over several tokens waits until it is whole."""
    seen: list[int] = []
    text, sent = "", 0
    for token in ids:
        seen.append(token)
        # All of it, each time: a decoder may treat the first token or a pair of tokens in its own way.
        text = tokenizer.decode(seen)
        whole = len(text.rstrip(UNFINISHED))
        if whole > sent:
            yield text[sent:whole]
            sent = whole
    if text[sent:]:
        yield text[sent:]
