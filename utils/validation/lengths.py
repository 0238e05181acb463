"""Does it answer at every length it promises, in the right shape? Knows no training and no time.

Shapes: B sequences, T positions, V = vocab_size, K classes.
"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from utils.validation.report import Check
from utils.validation.subject import Subject, because, locate, watching

ROW = 64  # positions of the pass whose operations are counted


@because("Training cuts texts to every length up to the maximum: one shape that breaks ends the run.")
def check_shapes(subject: Subject) -> Check:
    """Logits (B, T, V), floating and finite, for one token, an odd length, the full block and one token more."""
    block, problems, right = subject.block_size, [], []
    cases = [(1, 1), (3, min(7, block))]
    for case in cases:
        _try(subject, *case, problems, right)
    subject.length = max((length for _, length in right), default=0)
    if right:
        subject.length = block  # `affordable` counts up to it
        subject.flops = flops_of(subject, max(length for _, length in right))
        rest = {(2, subject.affordable(max(1, block // 2), 2)), (1, block)}
    else:
        rest = {(2, max(1, block // 2)), (1, block)}
    for case in sorted(rest - set(cases), key=lambda case: case[1]):
        cases.append(case)
        _try(subject, *case, problems, right)
    subject.length = max((length for _, length in right), default=0)
    if right:
        subject.flops = max(subject.flops, flops_of(subject, min(ROW, subject.length)))
    answer = f"(B, T, {subject.vocab_size})" if subject.task != "classification" else "(B, K)"
    shown = " ".join(f"({batch}, {length})" for batch, length in cases)
    threshold = f"{answer}, floating, finite"
    values = {"cases": len(cases), "right": len(right), "longest": subject.length}
    if problems:
        measured = f"{len(problems)} of {len(cases)} inputs failed. {problems[0][0]}"
        return Check("shapes", "fail", measured, threshold, problems[0][1], values=values)
    status, beyond, advice = _beyond(subject)
    measured = f"all {len(cases)} inputs (B, T) gave {answer}: {shown}; {beyond}"
    return Check("shapes", status, measured, threshold, advice, values=values | {"beyond": beyond})


class Operations(TorchDispatchMode):
    """Adds up the operations of matrix products and attention while it is open, as torch counts them.

    torch's own FlopCounterMode also loads its compiler, which takes seconds.
    """

    def __init__(self):
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry:
            self.total += flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=out)
        elif "scaled_dot_product_flash_attention_for_cpu" in func.__name__:  # torch's list has the GPU's only
            self.total += sdpa_flop_count(*(tensor.shape for tensor in args[:3]))
        return out


def flops_of(subject: Subject, length: int) -> float:
    """Operations of a forward pass over one sequence of `length`, per token; two per parameter if uncountable."""
    subject.model.eval()
    try:
        with Operations() as counter, torch.enable_grad():  # without gradients torch may fuse a layer into one call
            subject.run(subject.tokens(1, length))
        return counter.total / length
    except Exception:  # the counter does not know a stranger's operation; the model itself ran a moment ago
        return 2.0 * sum(param.numel() for param in subject.model.parameters())


def _try(subject: Subject, batch: int, length: int, problems: list, right: list) -> None:
    try:
        problem = _shape_problem(subject, batch, length)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # the model is a stranger's code: whatever it raises is the finding
        problem = locate(error), _error_advice(error, subject.block_size)
    if problem:
        problems.append((f"input ({batch}, {length}): {problem[0]}", problem[1]))
    else:
        right.append((batch, length))


def _shape_problem(subject: Subject, batch: int, length: int) -> tuple[str, str] | None:
    ids, vocab = subject.tokens(batch, length), subject.vocab_size
    ids[-1, -1] = vocab - 1  # a table that is a few rows short shows at the last id only
    subject.model.eval()
    subject.reseed()
    with torch.no_grad():
        out = subject.run(ids)
    classifies = subject.task == "classification"
    if not isinstance(out, torch.Tensor):
        kind, wanted = type(out).__name__, "(B, K)" if classifies else "(B, T, V)"
        return (
            f"returns a {kind}, expected a tensor {wanted}",
            f"Return the logits alone from forward(), or wrap the model so that the {kind} is unpacked.",
        )
    got = tuple(out.shape)
    if classifies:
        if len(got) != 2 or got[0] != batch or got[1] < 2:
            advice = "A classifier answers once per text: pool over the positions, then score the classes."
            return f"returned {got}, expected ({batch}, K) with K classes, at least 2", advice
        subject.classes = got[1]
    elif got != (batch, length, vocab):
        return f"returned {got}, expected {(batch, length, vocab)}", _shape_advice(got, (batch, length, vocab))
    if not out.is_floating_point():
        return f"returned {out.dtype}", "Return the scores, before any argmax: training needs a slope."
    if not torch.isfinite(out).all():
        share = 1 - torch.isfinite(out).float().mean().item()
        return (
            f"{share:.0%} of the logits are NaN or infinite; {_first_nonfinite(subject, ids)}",
            "Look at that module: a row of attention in which everything is masked, a division by zero, a "
            "square root or logarithm of a negative number, or weights that already hold NaN are the usual causes.",
        )
    return None


def _beyond(subject: Subject) -> tuple[str, str, str]:
    """One token more than promised: status, what happened, advice."""
    block = subject.block_size
    if subject.device.type == "cuda":  # an index past a table's end is not an error there: it ends the process
        return "pass", f"{block + 1} tokens not tried on a GPU", ""
    try:
        with torch.no_grad():
            out = subject.run(subject.tokens(1, block + 1))
    except (ValueError, IndexError, AssertionError) as error:
        return "pass", f"{block + 1} tokens are refused ({type(error).__name__})", ""
    except Exception as error:  # refused all the same, if by an accident further down
        return "pass", f"{block + 1} tokens fail with {locate(error)}", ""
    finite = isinstance(out, torch.Tensor) and bool(torch.isfinite(out).all())
    if finite and (subject.task == "classification" or out.shape[:2] == (1, block + 1)):
        return "pass", f"{block + 1} tokens, one more than promised, work too", ""
    told = "NaN or infinite logits" if not finite else f"logits {tuple(out.shape)}"
    advice = f"Raise ValueError for more than {block} tokens: nobody should read that answer by mistake."
    return "warn", f"{block + 1} tokens, one more than promised, silently give {told}", advice


def _shape_advice(got: tuple, want: tuple) -> str:
    batch, length, vocab = want
    if got == (batch, vocab, length):
        return "The last two axes are swapped: end forward() with logits.transpose(1, 2), or leave out yours."
    if got == (length, batch, vocab):
        return "Batch and time are swapped: the model expects (T, B). Use batch_first=True, or transpose."
    if got == (batch, vocab):
        return "Only one position is answered. A language model scores every one: drop the [:, -1]."
    if got == (batch * length, vocab):
        return "Batch and time are merged: end with logits.view(B, T, V)."
    if len(got) == 3 and got[:2] == (batch, length):
        return (
            f"The output layer gives {got[2]} scores per position but the vocabulary has {vocab} tokens: "
            "make its out_features equal vocab_size (or pass the padded size, if it is padded on purpose)."
        )
    return "Follow the shapes through forward() to the first that surprises you; the last must be (B, T, V)."


def _error_advice(error: Exception, block: int) -> str:
    if isinstance(error, IndexError) or "out of range" in str(error):
        return (
            "A lookup left its table: the token embedding needs vocab_size rows, position embeddings need "
            f"at least block_size = {block} rows."
        )
    if isinstance(error, TypeError):
        return "forward(input_ids) must work with token ids alone: give other arguments defaults."
    return "Open that line: forward() must work for any batch size and any length up to block_size."


def _first_nonfinite(subject: Subject, ids: torch.Tensor) -> str:
    for name, tensor in subject.model.named_parameters():
        if not torch.isfinite(tensor).all():
            return f"the parameter {name} holds them already"
    found = []

    def see(name, module, out):
        if isinstance(out, torch.Tensor) and not found and not torch.isfinite(out).all():
            found.append(f"first in the output of {name or 'the model itself'} ({type(module).__name__})")

    with watching(subject.model.named_modules(), see), torch.no_grad():
        subject.run(ids)
    return found[0] if found else "no single module is to blame"
