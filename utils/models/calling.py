"""How a stranger's `forward` is called and what it gives back, by the names it uses; decides nothing about the task.

B sequences, T positions, V = vocabulary, K = classes.
"""

import ast
import dataclasses
import inspect
import re
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

SOURCES = {
    "input_ids", "idx", "x", "tokens", "token_ids", "input", "inputs", "ids", "src", "source", "input_tokens", "text",
    "encoder_input_ids", "encoder_input", "encoder_inputs", "enc_input", "src_ids", "source_ids", "src_tokens",
}  # fmt: skip
TARGETS = {
    "tgt", "trg", "decoder_input_ids", "decoder_input", "decoder_inputs", "dec_input", "tgt_ids", "target_ids",
    "tgt_tokens", "target_tokens", "tgt_input", "target_input_ids", "tgt_input_ids",
}  # fmt: skip
MASKS = (
    "attention_mask", "padding_mask", "key_padding_mask", "src_key_padding_mask", "src_padding_mask", "pad_mask",
    "mask", "src_mask", "input_mask", "attn_mask",
)  # fmt: skip
LABELS = {"labels", "targets", "label", "target", "y", "lm_labels", "target_labels"}
SEGMENTS = {"token_type_ids", "segment_ids"}
POSITIONS = {"position_ids", "positions", "pos_ids", "cache_position"}
PARTS = ("mhsa", "mha", "self_attention", "attention", "attn", "residual", "ffn", "mlp", "layer", "norm", "block",
         "embedding", "embed", "moe", "linear", "head", "dropout", "encoder_output", "hidden")  # fmt: skip
INTERMEDIATE = re.compile(rf"^(({'|'.join(PARTS)})(_.*|\d*)|.*_(output|out|states?|hidden))$")
LOGITS = ("logits", "lm_logits", "prediction_logits", "prediction_scores", "scores", "predictions", "output", "outputs")
AUXILIARY = ("aux_loss", "auxiliary_loss", "load_balancing_loss", "balance_loss", "router_loss", "z_loss",
             "router_z_loss", "router_aux_loss", "moe_loss")  # fmt: skip
MASK_STYLES: dict[str, Callable[[Tensor], Tensor]] = {
    "1 = real": lambda mask: mask,
    "True = real": lambda mask: mask.bool(),
    "True = padding": lambda mask: mask == 0,
}


@dataclass(frozen=True)
class Call:
    """How token ids reach `forward`."""

    source: str
    """The parameter that takes them (what an encoder reads, where there are two)."""
    target: str = ""
    """The parameter that takes what a decoder reads; empty without one."""
    mask: str = ""
    """The parameter that takes the padding mask; empty without one."""
    mask_style: str = "1 = real"
    """What it means by one; a key of MASK_STYLES."""
    always_mask: bool = False
    """Whether it must be given even where nothing is padding."""
    positional: frozenset[str] = frozenset()
    """Those of the above that have no name to the caller."""
    nothing: tuple[str, ...] = ()
    """Required parameters that get None: labels and masks."""
    segments: tuple[str, ...] = ()
    """Required parameters that get zeros (B, T): everything is one segment."""
    positions: tuple[str, ...] = ()
    """Required parameters that get 0, 1, ... T-1 for each row, (B, T)."""
    echo: str = ""
    """Labels that get the ids themselves, because without labels only the last position is scored."""
    flags: dict[str, bool] = field(default_factory=dict)

    def __call__(self, model: nn.Module, ids: Tensor, target: Tensor | None = None, mask: Tensor | None = None) -> Any:
        """Whatever the model returns for `ids` (B, S), and `target` (B, T) where it takes two."""
        given: dict[str, Any] = {self.source: ids}
        if self.target:
            given[self.target] = ids if target is None else target
        given |= dict.fromkeys(self.nothing)
        if self.mask and (mask is not None or self.always_mask):
            given[self.mask] = MASK_STYLES[self.mask_style](torch.ones_like(ids) if mask is None else mask)
        if self.echo:
            given[self.echo] = ids
        given |= {name: torch.zeros_like(ids) for name in self.segments}
        places = torch.arange(ids.shape[1], device=ids.device).expand_as(ids) if self.positions else None
        given |= dict.fromkeys(self.positions, places)
        positional = [value for name, value in given.items() if name in self.positional]
        named = {name: value for name, value in given.items() if name not in self.positional}
        return model(*positional, **named, **self.flags)


def call_of(model: nn.Module) -> tuple[Call | None, list[str], list[str]]:
    """How to call a model, judged by the names in its `forward`.

    Returns the call, or None where there is none; the required names whose value nobody outside could know, such as
    the result of a layer (`mhsa_0_output`); and the names of such results that have a default.
    """
    every = [p for p in inspect.signature(model.forward).parameters.values() if p.kind is not p.VAR_KEYWORD]
    swallows = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(model.forward).parameters.values())
    required = [p.name for p in every if p.default is p.empty and p.kind is not p.VAR_POSITIONAL]
    names = [p.name for p in every]
    known = set(MASKS) | LABELS | SEGMENTS | POSITIONS | {n for n in names if n.endswith("mask")}
    strange = [n for n in names if INTERMEDIATE.match(n) and n not in known | SOURCES | TARGETS]

    tokens = [n for n in names if (n in SOURCES or re.fullmatch(r"(input|tokens?)_\d+(_\w+)?", n)) and n not in strange]
    free = [n for n in required if n not in known | TARGETS | set(strange) and n not in tokens]
    starred = [p.name for p in every if p.kind is p.VAR_POSITIONAL]
    source = next(iter([*(n for n in tokens if n in required), *free, *tokens, *starred]), "")
    if not source and swallows and not strange:
        source = "input_ids"
    others = [n for n in tokens[1:] if n in required]
    target = next((n for n in names if n in TARGETS and n != source), "")
    if not target and "target" in required and source in ("source", "src"):
        target = "target"
    if not target and others:
        target = others[0]
    unknown = [n for n in required if n in strange or (n in free and n not in (source, target))]
    optional = [n for n in strange if n not in required]
    if not source or unknown:
        return None, unknown, optional

    mask = next((n for n in MASKS if n in names), "")
    rest = [n for n in required if n not in (source, target)]
    call = Call(
        source=source, target=target, mask=mask,
        positional=frozenset(p.name for p in every if p.kind in (p.POSITIONAL_ONLY, p.VAR_POSITIONAL)),
        nothing=tuple(n for n in rest if n in LABELS or (n in known and n.endswith("mask"))),
        segments=tuple(n for n in rest if n in SEGMENTS), positions=tuple(n for n in rest if n in POSITIONS),
        flags={"use_cache": False} if "use_cache" in names else {},
    )  # fmt: skip
    return call, [], optional


@dataclass(frozen=True)
class Output:
    """Where the logits are in what `forward` returns."""

    kind: str = "tensor"
    """tensor, tuple, dict or object."""
    key: str | int = 0
    """The field or place of the logits."""
    auxiliary: tuple[str | int, ...] = ()
    """The fields or places of auxiliary losses."""

    def read(self, output: Any) -> tuple[Tensor, Tensor | None]:
        """The logits, and the sum of the auxiliary losses (None where there is none)."""
        fields = _fields(output)
        losses = [loss for key in self.auxiliary for loss in _scalars(fields.get(key))]
        total = torch.stack([loss.reshape(()).float() for loss in losses]).sum() if losses else None
        return (output if self.kind == "tensor" else fields[self.key]), total


def output_of(model: nn.Module, output: Any, sizes: set[int], width: int) -> Output | None:
    """Find the logits in what `forward` returned: by name, or in a tuple by their last axis, never by place alone.

    `sizes` are the vocabulary's possible sizes and `width` the embedding's. None where nothing returned is a score.
    """
    if isinstance(output, Tensor):
        return Output()
    fields = _fields(output)
    kind = "dict" if isinstance(output, Mapping) else "object"
    names: dict[str | int, str] = {key: key for key in fields if isinstance(key, str)}
    if isinstance(output, tuple | list):
        kind = "tuple"
        names = dict(enumerate(getattr(output, "_fields", None) or _returned_names(model, len(output))))
    scores = [key for key, value in fields.items() if isinstance(value, Tensor) and value.is_floating_point()]
    scores = [key for key in scores if fields[key].dim() >= 2]
    fitting = [key for key in scores if fields[key].shape[-1] in sizes]
    by_name = [key for name in LOGITS for key in scores if names.get(key) == name]
    if kind == "tuple" and fitting:  # a name in somebody's code may say `output` of a hidden state
        by_name = [key for key in by_name if key in fitting]
    else:
        by_name.sort(key=lambda key: key not in fitting)
    # A hidden state is kept as the last choice: the finding should name what was returned.
    found = next(iter([*by_name, *fitting, *(k for k in scores if fields[k].shape[-1] != width), *scores]), None)
    if found is None:
        return None
    auxiliary = tuple(key for key, name in names.items() if name in AUXILIARY)
    return Output(kind, found, auxiliary)


class Lookups(TorchFunctionMode):
    """Every table in which rows are looked up by number while this is active: (rows, width, numbers)."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[int, int, Tensor]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Note a lookup, however it is written, and do it."""
        table = numbers = None
        if func is F.embedding:
            numbers, table = args[0], args[1] if len(args) > 1 else (kwargs or {}).get("weight")
        elif func is torch.embedding or (func is Tensor.__getitem__ and isinstance(args[1], Tensor)):
            table, numbers = args[0], args[1]
        if table is not None and table.dim() == 2 and table.is_floating_point() and numbers.dtype == torch.int64:
            self.found.append((table.shape[0], table.shape[1], numbers.detach().clone()))
        return func(*args, **(kwargs or {}))


def source_file(model: nn.Module) -> str:
    """The path of the file that defines a model's class; empty without one."""
    try:
        return inspect.getsourcefile(type(model)) or ""
    except TypeError:  # a class without a file: defined in a console, or in C
        return ""


def forward_line(model: nn.Module) -> int:
    """The line in which a model's `forward` begins; 0 where there is no source."""
    try:
        return inspect.getsourcelines(type(model).forward)[1]
    except (OSError, TypeError):  # no source to read
        return 0


def _fields(output: Any) -> dict[Any, Any]:
    if isinstance(output, Mapping):
        return dict(output)
    if isinstance(output, tuple | list):
        return dict(enumerate(output))
    if dataclasses.is_dataclass(output):
        return {f.name: getattr(output, f.name) for f in dataclasses.fields(output)}
    return dict(getattr(output, "__dict__", {}))


def _scalars(value: Any) -> list[Tensor]:
    """An auxiliary loss may be one number, or one per layer."""
    if isinstance(value, Tensor):
        return [value] if value.numel() == 1 else []
    return [loss for item in value for loss in _scalars(item)] if isinstance(value, tuple | list) else []


def _returned_names(model: nn.Module, length: int) -> list[str]:
    """What `forward` calls the parts of the tuple it returns; empty strings where its returns disagree."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(model.forward)))
    except (OSError, TypeError, SyntaxError):  # no source to read
        return [""] * length
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Return) and isinstance(node.value, ast.Tuple) and len(node.value.elts) == length:
            found.append([getattr(part, "id", getattr(part, "attr", "")) for part in node.value.elts])
    return found[0] if found and all(names == found[0] for names in found) else [""] * length
