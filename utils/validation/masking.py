"""Who sees whom: which token moves which logits. Runs forward passes only; knows no training.

Shapes: B sequences, T positions, V = vocab_size.
"""

import time
from functools import partial
from itertools import pairwise

import torch

from utils.validation.report import Check, judged
from utils.validation.subject import Subject, because, locate, relative

LONGEST = 512  # positions used where every extra position only costs time
PROBE_SECONDS = 3.0  # a check that repeats itself stops repeating after this long
BLOCK_SECONDS = 10.0  # a forward pass of the full block may take, at the assumed speed
PATIENCE = 30.0  # seconds by the clock after which no further pass of the full block is begun
CELLS = 16  # rows and columns of the picture
FLOOR = -8.0  # of the picture's decades
LENGTH_MOVED = 1e-3  # of the logits' scale: another length may select other kernels, TF32 among them

IN_TRAINING = (
    "Training would teach it to copy. Look for what self.training switches: a mask that is only applied in one mode, "
    "batch normalisation, or experts with a limit, where later tokens take the places of earlier ones."
)


@because("A model that sees the token it must predict learns to copy it: its loss is a lie and its text is noise.")
def check_causality(subject: Subject) -> Check | None:
    """A later token must not move earlier logits; with causal=None it only says which kind this is."""
    if subject.task == "classification":
        return None  # one answer for the whole text: nothing is earlier
    length = subject.affordable(LONGEST, seconds=0.15)
    wanted = {True: "future tokens move nothing", False: "future tokens are seen", None: "reported only"}
    say = partial(Check, "causality", threshold=wanted[subject.causal])
    if length < 2:
        return say("skip", "needs two positions")
    subject.wake()
    ids = subject.tokens(1, length)
    base = subject.logits(ids)
    seen, ahead, amount, start = length, 0, 0.0, time.perf_counter()
    rows: dict[int, torch.Tensor] = {}
    first = [length - 1, 1, length // 2, length // 4, 3 * length // 4, 2]
    for place in dict.fromkeys(first + torch.linspace(1, length - 1, CELLS).round().int().tolist()):
        if not 0 < place < length or (len(rows) > 1 and time.perf_counter() - start > PROBE_SECONDS):
            continue
        rows[place] = _moved_by(subject, ids, base, place)
        moved = rows[place][:place]
        leaks = (moved > subject.moved).nonzero().flatten().tolist()
        if leaks:
            seen, ahead = min(seen, leaks[0]), max(ahead, place - leaks[0])
            amount = max(amount, moved.max().item())
    values = {"causal": ahead == 0, "sees_ahead": ahead, "moved": amount, "length": length}
    say = partial(say, values=values | {"positions_tried": len(rows)}, figure=_heatmap(rows, length))
    if not ahead:
        measured = f"causal: changing a token at {len(rows)} of {length} positions moved no earlier logits"
        if subject.causal is not False:
            full, tried, leak = _beyond(subject, length)
            values |= {"full_length": full, "full_tried": tried} | leak
            say = partial(say, values=values | {"positions_tried": len(rows)})
            if leak:
                measured, advice = _told_beyond(length, full, leak)
                return say("fail" if subject.causal else "pass", measured, advice=advice if subject.causal else "")
            if tried:
                measured += f", nor did {tried} at {full:,}"
            if subject.causal and _leaks_in_training(subject, ids):
                # Experts with a limit let later tokens take the places of earlier ones: known, not broken.
                status = "warn" if isinstance(getattr(subject.model, "aux_loss", None), torch.Tensor) else "fail"
                told = "causal in evaluation mode, but in training mode the last token moves earlier logits"
                return say(status, told, advice=IN_TRAINING)
            if max(full, length) < subject.length:
                measured += f"; the full {subject.length:,} would take too long"
            return say("pass", measured)
        advice = (
            "The model was declared bidirectional but looks only back: leave the causal mask out for "
            "masked-token training, or declare it causal."
        )
        return say("warn", measured, advice=advice)
    measured = (
        f"bidirectional: position {seen} is the first that sees a later token, up to {ahead} ahead; logits "
        f"moved by {amount:.2g} of their scale"
    )
    if not subject.causal:
        return say("pass", measured)
    if ahead <= 3 and length > 8:
        advice = (
            f"The mask is off by one: it lets {ahead} token(s) too many through. Position t may see 0..t, "
            "as in torch.tril(torch.ones(T, T)), diagonal=0. A convolution must be padded on the left "
            "only."
        )
    else:
        advice = (
            "The causal mask is missing: use F.scaled_dot_product_attention(q, k, v, is_causal=True), or "
            "set scores above the diagonal to -inf before the softmax. Without it the training loss falls "
            "to nothing, because the answer is in the input, and generation fails. A model meant to "
            'look both ways, as BERT does, says "task": "masked" in its config.json.'
        )
    return say("fail", measured, advice=advice)


def _leaks_in_training(subject: Subject, ids: torch.Tensor) -> bool:
    """Whether in training mode, under the same dropout, the last token moves earlier logits; no where passes differ."""
    changed, runs = ids.clone(), []
    changed[:, -1:] = subject.other(ids[:, -1:])
    for given in (ids, ids, changed):
        subject.reset()  # running statistics move in training
        subject.generator.manual_seed(subject.seed)  # so that the same paths are opened in the same way
        subject.wake()
        runs.append(subject.logits(given, training=True)[:, :-1])
    return relative(runs[0], runs[1]) <= subject.moved < relative(runs[0], runs[2])


def _beyond(subject: Subject, length: int) -> tuple[int, int, dict]:
    """A mask may cover the first positions only: two tokens changed in the full block, or as much as time allows.

    Returns how long that was, how many tokens were changed there (both 0 where it is no longer than what was tried
    or there is no time), and the leak if there is one.
    """
    full = subject.affordable(subject.length, seconds=BLOCK_SECONDS)
    if full <= length:
        return 0, 0, {}
    start, tried, ids = time.perf_counter(), 0, subject.tokens(1, full)
    base = subject.logits(ids)
    for place in (full - 1, (length + full) // 2):
        if time.perf_counter() - start > PATIENCE:
            break
        tried += 1
        moved = _moved_by(subject, ids, base, place)[:place]
        leaks = (moved > subject.moved).nonzero().flatten().tolist()
        if leaks:
            return full, tried, {"causal": False, "leak_at": leaks[0], "changed": place, "moved": moved.max().item()}
    return (full if tried else 0), tried, {}


def _told_beyond(length: int, full: int, leak: dict) -> tuple[str, str]:
    """Measured, and advice, for a leak that only longer texts show."""
    measured = (
        f"causal up to {length:,} tokens, not at {full:,}: changing token {leak['changed']:,} moves the logits from "
        f"position {leak['leak_at']:,} on, by {leak['moved']:.2g} of their scale"
    )
    advice = (
        "The mask does not cover the whole text: look for a mask, a buffer or a chunk that is smaller than block_size, "
        "and build it for the length that forward() is given."
    )
    return measured, advice


@because("Language is in the order and company of words: a model that sees one token at a time is a table.")
def check_context(subject: Subject) -> Check:
    """Other tokens do matter: a model that sees each token alone cannot learn language."""
    length = subject.affordable(LONGEST)
    if subject.task == "classification":
        return _read_by_classifier(subject, length)
    say = partial(Check, "context", threshold="earlier tokens move later logits")
    if length < 2:
        return say("skip", "needs two positions")
    subject.wake()
    ids = subject.tokens(1, length)
    base = subject.logits(ids)
    reach, own = 0, True
    for place in dict.fromkeys((0, length // 2, length - 2)):
        moved = _moved_by(subject, ids, base, place) > 0.1 * subject.moved
        own = own and bool(moved[place])
        later = moved[place + 1 :].nonzero().flatten().tolist()
        reach = max(reach, later[-1] + 1 if later else 0)
    say = partial(say, values={"reach": reach, "sees_own_token": own, "length": length})
    if not reach:
        advice = (
            "Each position is treated alone, as in a lookup table. Check that attention (or the "
            "recurrence) is called in forward(), that its result is added to the stream, and that the mask "
            "does not hide the past too."
        )
        return say("fail", f"changing a token moved no later logits (length {length})", advice=advice)
    if not own:
        advice = (
            "The mask hides the diagonal, or the input is shifted inside the model. Labels are shifted by "
            "the trainer, so forward() must not shift."
        )
        return say("warn", "the logits of a position do not depend on its own token", advice=advice)
    return say("pass", f"a token moves logits up to {reach} positions later")


def _read_by_classifier(subject: Subject, length: int) -> Check:
    subject.wake()
    ids = subject.tokens(1, length)
    base, start, heard = subject.logits(ids), time.perf_counter(), {}
    for place in dict.fromkeys(torch.linspace(0, length - 1, CELLS).round().int().tolist()):
        if len(heard) < 3 or time.perf_counter() - start < PROBE_SECONDS:
            changed = ids.clone()
            changed[:, place] = subject.other(ids[:, place])
            heard[place] = relative(base, subject.logits(changed)) > 0.1 * subject.moved
    count, values = sum(heard.values()), {"tried": len(heard), "heard": sum(heard.values()), "length": length}
    say = partial(Check, "context", threshold="tokens move the classes", values=values)
    if not count:
        advice = "The answer is the same for every text: check that the pooled state comes from the encoder's output."
        return say("fail", f"no token moves the class scores ({len(heard)} of {length} positions tried)", advice=advice)
    if count < len(heard):
        advice = "Fine for a model with a window or a maximum over positions; otherwise some text is never read."
        return say("warn", f"{count} of {len(heard)} tried positions move the class scores", advice=advice)
    return say("pass", f"every one of {count} tried positions moves the class scores")


@because("A decoder that does not hear its encoder writes fluent text about nothing it was given.")
def check_source(subject: Subject) -> Check | None:
    """An encoder's input moves the decoder's logits, first token and last, at any length of it."""
    if subject.task != "seq2seq":
        return None
    subject.wake()
    ids = subject.tokens(1, subject.affordable(16))
    source = subject.source(1)
    say = partial(Check, "source", threshold="what the encoder reads moves the decoder")
    base = subject.logits(ids, source=source)
    moved = relative(base, subject.logits(ids, source=subject.source(1, seed=1)))
    if moved <= 0.1 * subject.moved:
        advice = "Cross-attention is missing, its result is not added to the stream, or it reads the wrong tensor."
        return say("fail", "another source text moves no logits of the decoder", advice=advice)
    ends = {}
    for word, place in (("first", 0), ("last", -1)):
        changed = source.clone()
        changed[:, place] = subject.other(source[:, place])
        ends[word] = relative(base, subject.logits(ids, source=changed))
    values = {"moved": moved, **{f"moved_by_{word}": amount for word, amount in ends.items()}}
    for length in (1, 7, subject.affordable(subject.block_size)):
        try:
            logits = subject.logits(ids, source=subject.source(1, length))
        except Exception as error:  # the model is a stranger's code: whatever it raises is the finding
            advice = "The encoder must read any length up to block_size, whatever the decoder's."
            return say("fail", f"source of {length} tokens: {locate(error)}", advice=advice, values=values)
        if not torch.isfinite(logits).all():
            advice = "Look for a softmax over nothing or a mean over no positions in the encoder."
            return say("fail", f"source of {length} tokens: NaN or infinite logits", advice=advice, values=values)
    deaf = [word for word, amount in ends.items() if amount <= 0.1 * subject.moved]
    if deaf:
        advice = "The encoder's output is cut, or cross-attention is masked: every source position should be open."
        return say("warn", f"the {' and '.join(deaf)} source token moves nothing", advice=advice, values=values)
    measured = f"another source moves the logits by {moved:.2g} of their scale; all source lengths work"
    return say("pass", measured, values=values)


@because("Texts of unequal length share a batch by padding: what fills the gaps must not be read.")
def check_padding(subject: Subject) -> Check:
    """Padding after a text, or under an attention mask, does not move the logits of the text."""
    threshold = f"padding moves less than {LENGTH_MOVED:g} of the scale"
    say = partial(Check, "padding", threshold=threshold)
    if subject.length < 4:
        return say("skip", "needs four positions")
    if not subject.takes_mask and not subject.causal:
        return say("skip", "takes no attention mask: padding would be read as text, so batch texts of equal length")
    limit = max(LENGTH_MOVED, 10 * subject.moved)
    length = subject.affordable(64)
    ids, text = subject.tokens(2, length), 3 * length // 4
    base = subject.logits(ids)
    if relative(base, subject.logits(ids, reseed=False)) > subject.moved:
        return say("skip", "the same input gives other logits each time: see determinism")
    findings, told, values = [], [], {}
    if subject.causal:
        changed = torch.cat([ids[:, :text], subject.other(ids[:, text:])], 1)
        if relative(base[:, :text], subject.logits(changed)[:, :text]) > limit:
            return say("skip", "later tokens move earlier logits whatever their number: see causality")
        values["after"] = relative(subject.logits(ids[:, :text]), base[:, :text])
        told.append("what follows a text moves nothing in it")
        if values["after"] > limit:
            advice = (
                "Training on long texts and writing short ones then use two different models: look for a norm, "
                "a mean or a position that is counted from the end."
            )
            status = "fail" if values["after"] > 10 * limit else "warn"
            findings.append((status, f"a longer input moves earlier logits by {values['after']:.2g}", advice))
    if subject.takes_mask:
        _masked(subject, limit, findings, told, values)
    return judged("padding", findings, "; ".join(told), threshold, values)


def _masked(subject: Subject, limit: float, findings: list, told: list, values: dict) -> None:
    """Padding under a mask: its ids are not read, and a padded text is answered as it is alone."""
    room = subject.affordable(32, seconds=0.15)
    text = room // 2
    source, decoder = subject.tokens(1, text), subject.tokens(1, text) if subject.task == "seq2seq" else None

    def ask(ids, mask=None):
        if decoder is not None:
            return subject.logits(decoder, source=ids, mask=mask)
        out = subject.logits(ids, mask=mask)
        if subject.task == "classification" or mask is None:
            return out
        return out[:, mask[0].bool()]

    alone = ask(source)
    for side in ("right", "left"):
        fill = subject.tokens(1, room - text)
        pair = [source, fill] if side == "right" else [fill, source]
        ids, mask = torch.cat(pair, 1), torch.cat([torch.full_like(p, int(p is source)) for p in pair], 1)
        padded = ask(ids, mask)
        leak = relative(padded, ask(torch.where(mask.bool(), ids, subject.other(ids)), mask))
        values[f"{side}_leak"], values[f"{side}_moved"] = leak, relative(alone, padded)
        if leak > limit and side == "left" and subject.task == "classification":
            told.append("padding on the left is read where the first place stands for the text: pad on the right")
        elif leak > limit:
            advice = "Give the mask to every attention and to every mean over positions, -inf before the softmax."
            told_leak = f"ids under the mask ({side} of the text) move its logits by {leak:.2g}"
            findings.append(("fail", told_leak, advice))
        elif values[f"{side}_moved"] > limit and side == "right":
            advice = "Positions and norms must not depend on how much padding follows the text."
            findings.append(("fail", f"padding on the right moves logits by {values['right_moved']:.2g}", advice))
        elif values[f"{side}_moved"] > limit:
            told.append("padding on the left shifts the positions: pad on the right")
        else:
            told.append(f"masked padding on the {side} moves nothing")


def _moved_by(subject: Subject, ids: torch.Tensor, base: torch.Tensor, place: int) -> torch.Tensor:
    """How far each position's logits move (T,), in units of their spread, if the token at `place` changes."""
    changed = ids.clone()
    changed[:, place] = subject.other(ids[:, place])
    moved = (subject.logits(changed) - base).abs().amax((0, 2)) / base.std().clamp_min(1e-12)
    return torch.nan_to_num(moved, nan=float("inf"))


def _heatmap(rows: dict[int, torch.Tensor], length: int) -> dict:
    """Every row a changed position, every column a few positions that may have moved, in decades."""
    edges = torch.linspace(0, length, min(CELLS, length) + 1).round().int().tolist()
    places = sorted(rows)[:: max(1, -(-len(rows) // (2 * CELLS)))]
    spans = list(pairwise(edges))
    cells = [
        [rows[place][low:high].max().clamp(10**FLOOR, 10.0).log10().item() for low, high in spans] for place in places
    ]
    return {
        "kind": "heatmaps",
        "title": "How far a changed token moves each position's logits",
        "x_label": "position that moves",
        "y_label": "changed position",
        "panels": [{"title": "log10 of the move, in units of the logits' spread", "rows": cells}],
        "x_ticks": [str(edge) for edge in edges[:-1]],
        "y_ticks": [str(place) for place in places],
        "low": FLOOR,
        "high": 1.0,
    }
