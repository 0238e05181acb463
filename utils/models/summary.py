"""How large a model is, and what training it costs; reads any nn.Module and runs none."""

import html
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

from utils.config.schema import ModelShape
from utils.models.folder import unwrap

BYTES_FP32 = 4
BYTES_TRAINING = 16  # in fp32: the weight, its gradient, and AdamW's two moments
MB = 1_000_000


@dataclass(frozen=True)
class Part:
    """One row of the table: a top-level part of the model."""

    name: str
    kind: str
    """Its class, or `N x class` for a list of equals."""
    parameters: int
    """Parameters not counted in an earlier part."""
    tied_to: str = ""
    """The earlier part that shares weights with this one."""


@dataclass(frozen=True)
class ModelSummary:
    """What `summarize` found; prints itself as text, and as a table in a notebook."""

    name: str
    parts: list[Part] = field(default_factory=list)
    parameters: int = 0
    """All parameters, tied ones counted once."""
    trainable: int = 0
    """Those that need a gradient."""
    weights_mb: float = 0.0
    """Memory of the weights in fp32, in megabytes (10^6 bytes)."""
    training_mb: float = 0.0
    """Weights, gradients and AdamW's moments in fp32, in megabytes; activations come on top."""
    flops_per_token: int = 0
    """Estimated operations of a forward and a backward pass, per token of a full-length text."""

    def to_dict(self) -> dict[str, Any]:
        """The same as plain numbers, strings and lists, ready for JSON."""
        return asdict(self)

    def _rows(self) -> list[tuple[str, str, str]]:
        rows = []
        for part in self.parts:
            all_tied = part.tied_to and not part.parameters
            count = f"tied to {part.tied_to}" if all_tied else f"{part.parameters:,}"
            rows.append((part.name, part.kind, count))
        return [*rows, ("total", "", f"{self.parameters:,}")]

    def _facts(self) -> list[tuple[str, str]]:
        return [
            ("trainable", f"{self.trainable:,}"),
            ("weights", f"{self.weights_mb:,.1f} MB in fp32"),
            ("training", f"{self.training_mb:,.1f} MB + activations (weights, gradients, AdamW)"),
            ("compute", f"{self.flops_per_token / 1e6:,.1f} MFLOP per token, forward + backward"),
        ]

    def __repr__(self) -> str:
        rows = self._rows()
        names, kinds, counts = (max(len(row[column]) for row in rows) for column in range(3))
        names = max(names, max(len(name) for name, _ in self._facts()))
        table = [f"{a:<{names}}  {b:<{kinds}}  {c:>{counts}}" for a, b, c in rows]
        rule = "-" * len(table[0])
        facts = [f"{name:<{names}}  {value}" for name, value in self._facts()]
        return "\n".join([self.name, rule, *table[:-1], rule, table[-1], *facts])

    def _repr_html_(self) -> str:
        def line(name: str, *cells: str) -> str:
            return f'<tr><th style="text-align:left">{html.escape(name)}</th>{"".join(cells)}</tr>'

        def cell(text: str, align: str = "left", span: int = 1) -> str:
            return f'<td style="text-align:{align}" colspan="{span}">{html.escape(text)}</td>'

        rows = [line(name, cell(kind), cell(count, "right")) for name, kind, count in self._rows()]
        facts = [line(name, cell(value, span=2)) for name, value in self._facts()]
        body = "".join(rows + facts)
        return f"<table><caption>{html.escape(self.name)}</caption>{body}</table>"


def summarize(model: nn.Module, name: str = "") -> ModelSummary:
    """Count a model's parameters part by part and estimate what training it takes.

    Works for any nn.Module on any device (also "meta", which holds no numbers). `name` heads the table; empty
    means the model's class.

    Compute is 6 N + 12 L T C per token (Chowdhery et al. 2022, PaLM, appendix B,
    https://arxiv.org/abs/2204.02311): N parameters that multiply (an embedding that is only looked up does
    not), L layers, T = block_size, C = n_embd. The second term, attention, needs to know L, T and C: a model
    without a `shape` is counted without it.
    """
    model = unwrap(model)
    owner: dict[int, str] = {}  # id of a parameter -> the part it was counted in
    parts = []
    for part_name, module in [("(own)", None), *model.named_children()]:
        params = list(model.parameters(recurse=False) if module is None else module.parameters())
        if module is None and not params:
            continue
        new = {id(p): p for p in params if id(p) not in owner}
        tied_to = next((owner[id(p)] for p in params if id(p) in owner), "")
        owner.update(dict.fromkeys(new, part_name))
        parts.append(Part(part_name, _kind(module), sum(p.numel() for p in new.values()), tied_to))

    total = sum(p.numel() for p in model.parameters())
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    flops = 6 * (total - _only_looked_up(model))
    shape = getattr(model, "shape", None)
    if isinstance(shape, ModelShape):
        flops += 12 * shape.n_layer * shape.block_size * shape.n_embd
    return ModelSummary(
        name=name or type(model).__name__, parts=parts, parameters=total, trainable=trainable,
        weights_mb=total * BYTES_FP32 / MB,
        training_mb=(total * BYTES_FP32 + trainable * (BYTES_TRAINING - BYTES_FP32)) / MB,
        flops_per_token=flops,
    )


def _kind(module: nn.Module | None) -> str:
    if module is None:
        return "parameters"
    inner = [type(child).__name__ for child in module.children()]
    if isinstance(module, nn.ModuleList | nn.Sequential) and len(set(inner)) == 1:
        return f"{len(inner)} x {inner[0]}"
    return type(module).__name__


def _only_looked_up(model: nn.Module) -> int:
    """Parameters of embedding tables that no other layer multiplies with."""
    tables, used = {}, set()
    for module in model.modules():
        for p in module.parameters(recurse=False):
            if isinstance(module, nn.Embedding):
                tables[id(p)] = p.numel()
            else:
                used.add(id(p))
    return sum(size for key, size in tables.items() if key not in used)
