"""How large a model is, and what training it costs; reads any nn.Module and runs none."""

from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

from utils.config.schema import ModelShape
from utils.models.folder import unwrap
from utils.runtime.table import Table

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

    def table(self) -> Table:
        """The parts, and what the whole costs."""
        rows = []
        for part in self.parts:
            all_tied = part.tied_to and not part.parameters
            rows.append((part.name, part.kind, f"tied to {part.tied_to}" if all_tied else f"{part.parameters:,}"))
        rows += [
            ("all parameters", "tied ones once", f"{self.parameters:,}"),
            ("trainable", "", f"{self.trainable:,}"),
            ("weights", "in fp32", f"{self.weights_mb:,.1f} MB"),
            ("training", "weights, gradients, AdamW; activations come on top", f"{self.training_mb:,.1f} MB"),
            ("compute", "per token, forward + backward", f"{self.flops_per_token / 1e6:,.1f} MFLOP"),
        ]
        return Table(rows, title=self.name, right=2)

    def __repr__(self) -> str:
        return repr(self.table())

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()


def summary_from(values: dict[str, Any]) -> ModelSummary:
    """What `ModelSummary.to_dict` gave, a summary again."""
    return ModelSummary(**{**values, "parts": [Part(**part) for part in values["parts"]]})


def summarize(model: nn.Module, name: str = "") -> ModelSummary:
    """Count a model's parameters part by part and estimate what training it takes.

    Works for any nn.Module on any device (also "meta", which holds no numbers). `name` heads the table; empty
    means the model's class.

    Compute is 6 N + 12 L T C per token (Chowdhery et al. 2022, PaLM, appendix B,
    https://arxiv.org/abs/2204.02311): N parameters that multiply (an embedding that is only looked up does
    not), L layers, T = block_size, C = n_embd. The second term, attention, needs to know L, T and C: a model
    without a `shape` is counted without it. A model with a `flops_per_token()` of its own is asked.
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
    if hasattr(model, "flops_per_token"):  # one that knows better, such as a model that uses its weights many times
        flops = model.flops_per_token()
    elif isinstance(shape, ModelShape):
        flops += 12 * shape.n_layer * shape.block_size * shape.n_embd
    return ModelSummary(
        name=name or type(model).__name__,
        parts=parts,
        parameters=total,
        trainable=trainable,
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
