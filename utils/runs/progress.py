"""A run's state in one line of words, the same in a terminal, a log and a notebook."""

from typing import Any

from utils.runtime.table import count, duration


def progress_line(state: dict[str, Any]) -> str:
    """`step 120/800  loss 0.512  val 0.530  12.3k tokens/s  1:05 left`, leaving out what is not known yet."""
    parts = [f"step {state.get('step', 0)}/{state.get('total_steps', '?')}"]
    for name, key in (("loss", "train_loss"), ("val", "val_loss")):
        if state.get(key) is not None:
            parts.append(f"{name} {state[key]:.4f}")
    if state.get("tokens_per_second"):
        parts.append(f"{count(state['tokens_per_second'])} tokens/s")
    if state.get("eta_seconds"):
        parts.append(f"{duration(state['eta_seconds'])} left")
    return "  ".join(parts)


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
