"""A run's state in one line of words, the same in a terminal, a log and a notebook."""

from collections.abc import Sequence
from typing import Any

from utils.runtime.table import count, duration

PARTS = ("data", "forward", "backward", "optimizer", "evaluation", "saving", "other")  # of a run's time, in this order
ALERTS = ("alert", "skipped", "rolled_back", "out_of_memory", "not_saved")  # events that somebody should know of
NEWS = (*ALERTS, "resumed", "note")  # and who watches hears of these, too
MOST_ALERTS = 3  # of each kind, the last ones


def progress_line(state: dict[str, Any]) -> str:
    """`step 120/800  loss 0.512  val 0.530  12.3k tokens/s  mfu 43 %  1:05 left`, leaving out what is not known yet."""
    parts = [f"step {state.get('step', 0)}/{state.get('total_steps', '?')}"]
    for name, key in (("loss", "train_loss"), ("val", "val_loss")):
        if state.get(key) is not None:
            parts.append(f"{name} {state[key]:.4f}")
    if state.get("tokens_per_second"):
        parts.append(f"{count(state['tokens_per_second'])} tokens/s")
    if state.get("mfu"):
        parts.append(f"mfu {percent(state['mfu'])}")
    if state.get("eta_seconds"):
        parts.append(f"{duration(state['eta_seconds'])} left")
    return "  ".join(parts)


def percent(share: float) -> str:
    """0.43 -> "43 %", 0.0123 -> "1.2 %"."""
    return f"{100 * share:.{0 if abs(share) >= 0.0995 else 1}f} %"


def split(state: dict[str, Any]) -> dict[str, float]:
    """The share of this attempt's time that each of PARTS took, as last written; only those that took any."""
    shares = {part: state.get(f"share/{part}") for part in PARTS}
    return {part: min(share, 1.0) for part, share in shares.items() if share is not None and share > 0}


def split_line(state: dict[str, Any]) -> str:
    """`data 1 % · forward 30 % · backward 55 % · optimizer 6 % · evaluation 8 %`, without what rounds to 0 %."""
    return " · ".join(f"{part} {100 * share:.0f} %" for part, share in split(state).items() if share >= 0.005)


def alerts(events: Sequence[dict[str, Any]]) -> list[str]:
    """What somebody should know of a run, by step, in words: the last alerts, skipped steps and rollbacks.

    Args:
        events: those of the kinds ALERTS, as `RunFolder.events` gives them.
    """
    chosen = []
    for kind in ALERTS:
        rows = [row for row in events if row["event"] == kind]
        kept = rows[-1:] if kind == "skipped" else rows[-MOST_ALERTS:]  # one for all: a bad hour may leave out hundreds
        more = f" ({len(rows)} times so far)" if len(rows) > len(kept) else ""
        for row in kept:
            chosen.append((row.get("step", 0), event_line(row) + (more if row is kept[-1] else "")))
    return [line for _, line in sorted(chosen, key=lambda one: one[0])]


def event_line(event: dict[str, Any]) -> str:
    """`step 30: the loss was nan: the step was left out`: an event in one line, whatever its text holds."""
    return f"step {event.get('step', 0)}: {' '.join(str(event.get('text', '')).split())}"


def data_line(what: str, done: int, total: int) -> str:
    """`encoding: 1.2M of 4.8M (25 %)`: how far the preparing of data is; a total of 0 is not known."""
    of = f" of {count(total)} ({100 * done / total:.0f} %)" if total else ""
    return f"{what}: {count(done)}{of}" if done else f"{what} ..."


def above_floor(state: dict[str, Any]) -> str:
    """How far the best model is from the best possible one, where that is known; else nothing."""
    best, floor = state.get("best_val_loss"), state.get("entropy_floor")
    if best is None or floor is None:
        return ""
    gap, characters = best - floor, state.get("characters_per_token", 1.0)
    per_character = "" if characters == 1.0 else f" ({gap / characters:.3f} per character)"
    return f"{gap:.2f} nats per token{per_character} above the best possible"


def outcome(state: dict[str, Any], status: str) -> str:
    """How a run stands, in a sentence."""
    step, best = state.get("step", 0), state.get("best_val_loss")
    words = f"{status} at step {step}"
    if best is not None:
        words += f", best validation loss {best:.4f} at step {state.get('best_step')}"
    if gap := above_floor(state):
        words += f": {gap}"
    return words
