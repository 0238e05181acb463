"""How a stranger's `forward` is called, by the names it uses; decides nothing about the task.

B sequences, T positions.
"""

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
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
SEGMENTS = {"token_type_ids", "token_types", "segment_ids", "segments", "segment_info", "segment_label", "seg_ids"}
POSITIONS = {"position_ids", "positions", "pos_ids", "cache_position", "pos", "position", "input_pos"}
STATES = {"cache", "kv_cache", "kv_caches", "past", "past_key_values", "past_key_value", "past_kv", "mems", "state",
          "states", "hidden", "h0", "hx", "init_state", "prev_state", "initial_state"}  # fmt: skip
STARTS = {"start_pos", "offset", "pos_offset", "position_offset", "past_length", "start_index"}
WRAPPERS = {"batch", "inputs", "features", "data", "sample", "x"}
PARTS = ("mhsa", "mha", "self_attention", "attention", "attn", "residual", "ffn", "mlp", "layer", "norm", "block",
         "embedding", "embed", "moe", "linear", "head", "dropout", "encoder_output", "hidden")  # fmt: skip
INTERMEDIATE = re.compile(rf"^(({'|'.join(PARTS)})(_.*|\d*)|.*_(output|out|states?|hidden))$")
MASK_STYLES: dict[str, Callable[[Tensor], Tensor]] = {
    "1 = real": lambda mask: mask,
    "True = real": lambda mask: mask.bool(),
    "True = padding": lambda mask: mask == 0,
    "True = real (B, 1, 1, T)": lambda mask: mask.bool()[:, None, None],
    "added to the scores (B, 1, 1, T)": lambda mask: (1.0 - mask[:, None, None].float()) * -1e9,
}
CAUSAL_STYLES: dict[str, Callable[[Tensor], Tensor]] = {  # of a (T, T) that is True at what a token may see
    "True = seen": lambda seen: seen,
    "True = hidden": lambda seen: ~seen,
    "added to the scores": lambda seen: torch.zeros(seen.shape, device=seen.device).masked_fill(~seen, -torch.inf),
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
    """Required parameters that get None: labels, masks and states to begin with."""
    segments: tuple[str, ...] = ()
    """Required parameters that get zeros (B, T): everything is one segment."""
    positions: tuple[str, ...] = ()
    """Required parameters that get 0, 1, ... T-1 for each row, (B, T)."""
    echo: str = ""
    """Labels that get the ids themselves, because without labels only the last position is scored."""
    flags: dict[str, Any] = field(default_factory=dict)
    """Parameters that always get the same: no cache, and 0 as the first position."""
    key: str = ""
    """What the ids are called in the dict that `source` takes; empty where it takes the ids themselves."""
    causal: str = ""
    """The parameter that takes a causal mask (T, T), where the model makes none itself."""
    causal_style: str = ""
    """What it means by one; a key of CAUSAL_STYLES."""
    time_first: bool = False
    """Whether it takes (T, B)."""
    copies: bool = False
    """Whether it changes the ids it is given, so that it gets a copy."""

    def __call__(self, model: nn.Module, ids: Tensor, target: Tensor | None = None, mask: Tensor | None = None) -> Any:
        """Whatever the model returns for `ids` (B, S), and `target` (B, T) where it takes two."""
        if self.copies:
            ids, target = ids.clone(), None if target is None else target.clone()
        if self.time_first:
            ids, target = ids.t(), None if target is None else target.t()
        given: dict[str, Any] = {self.source: {self.key: ids} if self.key else ids}
        if self.target:
            given[self.target] = ids if target is None else target
        given |= dict.fromkeys(self.nothing)
        if self.mask and (mask is not None or self.always_mask):
            given[self.mask] = MASK_STYLES[self.mask_style](torch.ones_like(ids) if mask is None else mask)
        if self.causal:
            length = (ids if target is None else target).shape[0 if self.time_first else 1]
            seen = torch.ones(length, length, dtype=torch.bool, device=ids.device).tril()
            given[self.causal] = CAUSAL_STYLES[self.causal_style](seen)
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
    known = set(MASKS) | LABELS | SEGMENTS | POSITIONS | STATES | STARTS | {n for n in names if n.endswith("mask")}
    strange = [n for n in names if INTERMEDIATE.match(n) and n not in known | SOURCES | TARGETS]

    tokens = [n for n in names if (n in SOURCES or re.fullmatch(r"(input|tokens?)_\d+(_\w+)?", n)) and n not in strange]
    free = [n for n in required if n not in known | TARGETS | set(strange) and n not in tokens]
    starred = [p.name for p in every if p.kind is p.VAR_POSITIONAL]
    source = next(iter([*(n for n in tokens if n in required), *free, *tokens, *starred]), "")
    if not source and swallows and not strange:
        last = list(inspect.signature(model.forward).parameters)[-1]
        source = next((key for key in _keys_read(model, last) if key in SOURCES), "input_ids")
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
        source=source,
        target=target,
        mask=mask,
        positional=frozenset(p.name for p in every if p.kind in (p.POSITIONAL_ONLY, p.VAR_POSITIONAL)),
        nothing=tuple(n for n in rest if n in LABELS | STATES or (n in known and n.endswith("mask"))),
        segments=tuple(n for n in rest if n in SEGMENTS),
        positions=tuple(n for n in rest if n in POSITIONS),
        flags={"use_cache": False} if "use_cache" in names else {},
    )
    call.flags.update({name: 0 for name in rest if name in STARTS})  # fmt: skip
    return call, [], optional


def ways_of(model: nn.Module, call: Call) -> Iterator[Call]:
    """The call, and what else its parameters may want where it fails: a mask or labels instead of None, a dict."""
    yield call
    if call.mask in call.nothing:
        for style in MASK_STYLES:
            yield replace(call, mask_style=style, always_mask=True)
    for name in call.nothing:
        if name in LABELS:
            yield replace(call, echo=name, nothing=tuple(other for other in call.nothing if other != name))
    if call.source in WRAPPERS:
        keys = _keys_read(model, call.source)
        if key := next((key for key in keys if key in SOURCES), ""):
            yield replace(call, key=key)


def _keys_read(model: nn.Module, name: str) -> list[str]:
    """The keys that `forward` asks of the dict it calls `name`."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(model.forward)))
    except (OSError, TypeError, SyntaxError):  # no source to read
        return []
    keys = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and getattr(node.value, "id", "") == name:
            keys.append(node.slice)
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("get", "pop") and node.args:
            keys += [node.args[0]] if getattr(node.func.value, "id", "") == name else []
    return [key.value for key in keys if isinstance(key, ast.Constant) and isinstance(key.value, str)]


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
    kind = type(model)
    try:
        own = inspect.getsourcefile(kind.forward) == inspect.getsourcefile(kind)
        return inspect.getsourcelines(kind.forward if own else kind)[1]
    except (OSError, TypeError):  # no source to read
        return 0
