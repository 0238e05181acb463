"""Is this model sound? The questions of tier 1, in the order they are asked; each file says what it does not know."""

from torch import nn

from utils.validation.gradients import check_gradients, check_learning
from utils.validation.initialisation import check_initialisation
from utils.validation.lengths import check_shapes
from utils.validation.masking import check_causality, check_context, check_padding, check_source
from utils.validation.memory import check_memory, check_parameters
from utils.validation.probes import check_batch, check_determinism, check_stability
from utils.validation.report import Report
from utils.validation.run import run_checks
from utils.validation.speed import check_speed

CHECKS = {
    "shapes": check_shapes,
    "batch independence": check_batch,
    "causality": check_causality,
    "context": check_context,
    "source": check_source,
    "padding": check_padding,
    "determinism": check_determinism,
    "stability": check_stability,
    "initialisation": check_initialisation,
    "gradients": check_gradients,
    "learning": check_learning,
    "parameters": check_parameters,
    "memory": check_memory,
    "speed": check_speed,
}


def run_tier1(
    model: nn.Module,
    vocab_size: int,
    block_size: int,
    causal: bool | None = True,
    seed: int = 0,
    task: str = "causal",
) -> Report:
    """Ask every tier-1 question about a model and report the answers.

    Args:
        model: maps input_ids (B, T) int64 to logits (B, T, vocab_size), or as its task says. Left exactly as found.
        vocab_size: V, at least 2.
        block_size: the longest sequence the model promises to accept, in tokens.
        causal: True, future tokens must not matter; False, they must; None, only report which. Of a task other
            than causal the task itself decides.
        seed: of every draw.
        task: causal, masked, seq2seq or classification.

    Returns:
        A report with one check per question; an error inside a check is its "fail" and ends no other.

    Raises:
        TypeError: model is no nn.Module.  ValueError: vocab_size or block_size is too small, or an unknown task.
    """
    kind = causal if task == "causal" else "by task"
    answers = run_checks(model, CHECKS, vocab_size=vocab_size, block_size=block_size, task=task, seed=seed, causal=kind)
    return Report(f"Is {type(getattr(model, '_orig_mod', model)).__name__} sound?", answers)
