"""Anybody's model called the house's way: token ids in, logits out; knows no training, data or files but the export's.

B sequences, T positions, S positions of what an encoder reads, V = vocabulary, K = classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from utils.models.calling import Call
from utils.models.export_class import build_export
from utils.models.findings import Finding
from utils.models.outputs import Output
from utils.models.probe import Probe, probe


@dataclass(frozen=True)
class Limits:
    """What a model accepts."""

    vocab_size: int
    """Ids 0 ... vocab_size - 1 can be read and predicted."""
    block_size: int
    """The longest sequence, in tokens."""


class AdaptedModel(nn.Module):
    """Somebody's module, untouched, behind the one way in which the house calls models.

    What it takes and returns was found by probing it once; a forward pass only follows that.
    """

    packs_documents = False  # nobody can tell a stranger's attention where a document ends

    aux_loss: Tensor | None
    """The sum of the auxiliary losses of the last forward pass, a scalar with a gradient; None without any."""

    def __init__(
        self, inner: nn.Module, found: Probe, notes: tuple[str, ...] = (), start_id: int | None = None
    ) -> None:
        super().__init__()
        self.inner = inner
        self.task: str = found.task
        self.n_classes: int = found.n_classes if found.task == "classification" else 0
        self.start_id: int | None = start_id if found.task == "seq2seq" else None
        self.shape = Limits(found.vocab_size, found.block_size)
        self.supports_attention_mask: bool = found.masks
        self.notes: tuple[str, ...] = (*notes, *found.notes)
        self.findings: tuple[Finding, ...] = tuple(found.findings)
        self.aux_loss = None
        self._call: Call = found.call
        self._output: Output = found.output
        self._training_output: Output = found.training_output

    def forward(
        self, input_ids: Tensor, decoder_input_ids: Tensor | None = None, attention_mask: Tensor | None = None
    ) -> Tensor:
        """Logits: (B, T, V) for ids (B, T); for a seq2seq model (B, T, V) for (B, S) and decoder ids (B, T);
        for a classification model (B, K).

        `attention_mask` is (B, T), 1 = real token, 0 = padding; it goes with `input_ids`. Raises ValueError where
        the model takes no such mask, or where decoder ids are missing or not taken.
        """
        if (decoder_input_ids is None) == (self.task == "seq2seq"):
            raise ValueError(
                "a seq2seq model needs decoder_input_ids beside input_ids" if decoder_input_ids is None
                else f"a {self.task} model takes no decoder_input_ids: leave them out"
            )  # fmt: skip
        if attention_mask is not None and not self.supports_attention_mask:
            raise ValueError(
                f"{type(self.inner).__name__} takes no padding mask: leave attention_mask out and feed texts of "
                "one length (supports_attention_mask says so before)"
            )
        output = self._call(self.inner, input_ids, decoder_input_ids, attention_mask)
        logits, self.aux_loss = (self._training_output if self.training else self._output).read(
            output, self.inner, len(input_ids)
        )
        if self.task != "classification" and logits.shape[-1] > self.shape.vocab_size:
            logits = logits[..., : self.shape.vocab_size]  # scores of padding rows, which no id means
        return logits

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The inner model's, under its own names."""
        return self.inner.state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The inner model's, by its own names."""
        return self.inner.load_state_dict(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        # The last auxiliary loss hangs on the graph of a forward pass, and such a tensor cannot be copied; nor can one
        # that the model keeps.
        for path, name in self._training_output.kept:
            module = self.inner.get_submodule(path)
            if isinstance(loss := getattr(module, name), Tensor):
                setattr(module, name, loss.detach())
        return {**self.__dict__, "aux_loss": None}

    def facts(self) -> dict[str, Any]:
        """What was found, ready for JSON."""
        return {
            "class": type(self.inner).__name__,
            "task": self.task,
            "vocab_size": self.shape.vocab_size,
            "block_size": self.shape.block_size,
            "n_classes": self.n_classes,
            "start_id": self.start_id,
            "inputs": [name for name in (self._call.source, self._call.target) if name],
            "mask": self._call.mask if self.supports_attention_mask else "",
            "output": self._output.kind,
            "logits": self._output.key,
            "aux_losses": [
                *self._training_output.auxiliary,
                *(".".join(filter(None, place)) for place in self._training_output.kept),
            ],
            "parameters": sum(p.numel() for p in self.inner.parameters()),
            "notes": list(self.notes),
            "findings": [finding.to_dict() for finding in self.findings],
        }


def load_export(folder: Path, seed: int = 0) -> AdaptedModel:
    """The model of a folder with model.py and config.json, on the CPU, in training mode as torch builds it.

    This runs model.py in this process: box it. The weights are a pure function of the files and the seed, and torch's
    global random state is as it was. Raises ExportError with findings (code, line, likely fix) where it cannot work.
    """
    module, config, notes = build_export(Path(folder), seed)
    found = probe(module, config, seed=seed)
    return AdaptedModel(module, found, tuple(notes), start_id_in(config, found.vocab_size))


def adapt(module: nn.Module, config: Mapping[str, Any], task: str | None = None) -> AdaptedModel:
    """The same for a module that is already built, on whatever device, such as transformers'.

    `config` is what is known of it, by any usual names; `task` is "causal", "masked", "seq2seq" or
    "classification" where that is known better than probing tells. Raises ExportError, and ValueError for an
    unknown task.
    """
    found = probe(module, config, task)
    return AdaptedModel(module, found, start_id=start_id_in(config, found.vocab_size))


def start_id_in(config: Mapping[str, Any], vocab_size: int) -> int | None:
    """The token a decoder begins with, if a config names one that there is: `decoder_start_token_id`, as transformers'.

    A T5 that names none begins with its padding (Raffel et al. 2020, https://arxiv.org/abs/1910.10683).
    """
    wanted = config.get("decoder_start_token_id")
    if wanted is None and config.get("model_type") in ("t5", "mt5", "umt5", "longt5"):
        wanted = config.get("pad_token_id")
    is_id = isinstance(wanted, int) and not isinstance(wanted, bool) and 0 <= wanted < vocab_size
    return wanted if is_id else None
