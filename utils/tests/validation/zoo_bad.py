"""Broken models, each in one known way, with the check that must name it; built from the sound ones."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from utils.tests.validation import zoo
from utils.tests.validation.zoo import BLOCK, GPT, C, V
from utils.tests.validation.zoo_good import Classifier, K, MaskedEncoder, Seq2Seq


@dataclass(frozen=True)
class Defect:
    """What is broken, which check must say so and how."""

    make: Callable[[], nn.Module]
    check: str
    measured: str
    advice: str = ""
    task: str = "causal"
    status: str = "fail"
    also: tuple[str, ...] = ()
    """Other checks that rightly fail with it."""


class Frozen(GPT):
    def __init__(self):
        super().__init__()
        self.requires_grad_(False)


class Unused(GPT):
    def __init__(self):
        super().__init__()
        self.spare = nn.Linear(C, C)


class DeepSigmoid(GPT):
    """Ten squashing layers, one after the other, with nothing around them."""

    def __init__(self):
        super().__init__()
        self.deep = nn.ModuleList(nn.Sequential(nn.Linear(C, 4 * C), nn.Linear(4 * C, C)) for _ in range(10))

    def hidden(self, idx):
        x = super().hidden(idx)
        for layer in self.deep:
            x = layer(x).sigmoid()
        return self.ln(x)


class InfiniteWhenLong(GPT):
    def forward(self, idx):
        T = idx.shape[1]
        return super().forward(idx) / (torch.arange(T) < BLOCK - 4)[None, :, None]


class ShiftedInside(GPT):
    def forward(self, idx):
        return super().forward(F.pad(idx[:, :-1], (1, 0)))


class Remembers(GPT):
    last = 0.0

    def hidden(self, idx):
        x = super().hidden(idx) + self.last
        self.last = x.detach().mean((0, 1))
        return x


class SeesTheAnswer(GPT):
    def hidden(self, idx):
        return super().hidden(idx) + self.tok(idx.roll(-1, 1))


class MasksInEvaluationOnly(GPT):
    def hidden(self, idx):
        for block in self.blocks:
            block.attn.mask = "none" if self.training else "causal"
        return super().hidden(idx)


class EchoesItsInput(GPT):
    def forward(self, idx):
        return super().forward(idx) + 12 * F.one_hot(idx, V)


class CountsFromTheEnd(GPT):
    def hidden(self, idx):
        return super().hidden(idx) + self.pos(torch.arange(idx.shape[1]).flip(0))


class IgnoresItsMask(MaskedEncoder):
    def forward(self, idx, attention_mask=None):
        return super().forward(idx)


class PoolsPadding(MaskedEncoder):
    def pool(self, x, mask):
        return x.mean(1)


class DeafDecoder(Seq2Seq):
    def forward(self, source, target):
        return super().forward(torch.zeros_like(source), target)


class LeakyDecoder(Seq2Seq):
    def mask(self, length):
        return torch.zeros(length, length)


class OneSourceLength(Seq2Seq):
    def __init__(self):
        super().__init__()
        self.mix = nn.Linear(BLOCK, BLOCK)

    def forward(self, source, target):
        x = self.mix(self.embed(source).transpose(1, 2)).transpose(1, 2)
        return self.head(self.net(x, self.embed(target), tgt_mask=self.mask(target.shape[1])))


class DeafClassifier(Classifier):
    def forward(self, idx):
        return super().forward(torch.zeros_like(idx)) + 0 * idx[:, :1]


class AnswersEveryToken(Classifier):
    def forward(self, idx):
        return self.head(self.hidden(idx))


class Loud(GPT):
    """A layer as loud as fp16 cannot hold, and a norm that hides it from the logits."""

    def __init__(self):
        super().__init__()
        self.loud = nn.Linear(C, C)
        nn.init.normal_(self.loud.weight, std=1e5)

    def hidden(self, idx):
        return F.layer_norm(self.loud(super().hidden(idx)), (C,))


class CopiedHead(GPT):
    """Meant to be tied: the numbers are the embedding's, turned, and the tensor is another."""

    def __init__(self):
        super().__init__()
        self.out = nn.Parameter(self.tok.weight.detach().T.clone())
        del self.head

    def forward(self, idx):
        return self.hidden(idx) @ self.out


class LogOfTheId(GPT):
    def hidden(self, idx):
        return super().hidden(idx) + 0.01 * idx.unsqueeze(-1).log()


class SteepRoot(GPT):
    def hidden(self, idx):
        x = super().hidden(idx)
        return x + (x - x).abs().sqrt()


class NaNBeyond(nn.Module):
    """Rotates instead of looking up, and gives NaN past its promise instead of an error."""

    def __init__(self):
        super().__init__()
        self.net = zoo.GRU()

    def forward(self, idx):
        logits = self.net(idx)
        return logits if idx.shape[1] <= BLOCK else logits * float("nan")


class Argmax(GPT):
    def forward(self, idx):
        return super().forward(idx).round().long()


class FewIds(GPT):
    def __init__(self):
        super().__init__()
        self.tok = nn.Embedding(V - 1, C)


BAD: dict[str, Defect] = {
    "no causal mask": Defect(
        lambda: GPT(mask="none"), "causality", "position 0 is the first .* up to 31 ahead", "mask is missing"
    ),
    "mask off by one": Defect(
        lambda: GPT(mask="ahead", layers=1), "causality", "up to 1 ahead", "off by one.*diagonal=0"
    ),
    "mask for the first half": Defect(
        lambda: GPT(mask="short"), "causality", "position 16 is the first", "mask"
    ),
    "no mask in training": Defect(MasksInEvaluationOnly, "causality", "but in training mode", "self.training"),
    "label leak": Defect(SeesTheAnswer, "causality", "ahead"),
    "leaky decoder": Defect(LeakyDecoder, "causality", "up to 31 ahead", "missing", "seq2seq"),
    "masked model looks only back": Defect(GPT, "causality", "causal: ", "leave the causal mask out", "masked", "warn"),
    "detached block": Defect(
        zoo.NoGradientToBlock, "gradients", r"cut off from the gradient: blocks\.0\.ln1", "detach"
    ),
    "frozen": Defect(Frozen, "gradients", "no parameter is trainable", "requires_grad", status="warn"),
    "unused parameters": Defect(Unused, "gradients", "^unused: spare.weight, spare.bias$", status="warn"),
    "dead relu": Defect(zoo.DeadReLU, "gradients", r"exactly zero: extra\.weight", "never active"),
    "vanishing gradient": Defect(
        DeepSigmoid, "gradients", r"gradient of deep\.9 is .* times that of deep\.0", "residual",
        also=("stability", "learning"),
    ),
    "infinite slope": Defect(SteepRoot, "gradients", "NaN or infinite gradient", "eps", also=("learning",)),
    "NaN": Defect(
        zoo.NaN, "shapes", r"NaN or infinite; first in the output of blocks\.1\.mlp\.1 \(Root\)", "square root"
    ),
    "infinite when long": Defect(InfiniteWhenLong, "shapes", r"\(1, 32\).*NaN or infinite"),
    "NaN beyond the limit": Defect(NaNBeyond, "shapes", "33 tokens.*silently", "ValueError", status="warn"),
    "transposed": Defect(
        zoo.Transposed, "shapes", r"returned \(.*\), expected \(.*64\)", "swapped.*transpose"
    ),
    "wrong vocabulary": Defect(
        lambda: GPT(vocab=50), "shapes", r"returned \(1, 1, 50\)", "gives 50 scores .* 64 tokens"
    ),
    "embedding too small": Defect(FewIds, "shapes", "IndexError", "vocab_size rows"),
    "few positions": Defect(
        lambda: GPT(block=10), "shapes", r"IndexError.*zoo.py:\d+ in hidden: x = ", "block_size = 32"
    ),
    "raises": Defect(
        zoo.Raises, "shapes", r"RuntimeError: the left .* is loose \(at zoo.py:\d+ in forward", "Open that line"
    ),
    "tuple": Defect(zoo.Tuple, "shapes", r"returns a tuple, expected a tensor \(B, T, V\)", "logits alone"),
    "integers": Defect(Argmax, "shapes", "int64", "slope"),
    "class per token": Defect(AnswersEveryToken, "shapes", r"expected \(1, K\)", "pool", "classification"),
    "batch norm": Defect(
        zoo.WithBatchNorm, "batch independence", "training mode; batch normalisation: norm", "LayerNorm",
        also=("causality",),
    ),
    "mixes the batch": Defect(
        zoo.BatchSecond, "batch independence", "evaluation mode|training mode", "dimension 0"
    ),
    "context-free": Defect(zoo.ContextFree, "context", "moved no later logits", "lookup table"),
    "shifted inside": Defect(ShiftedInside, "context", "own token", "forward\\(\\) must not shift", status="warn"),
    "deaf classifier": Defect(
        DeafClassifier, "context", "no token moves the class", "pooled", "classification",
        also=("stability", "learning"),
    ),
    "deaf decoder": Defect(DeafDecoder, "source", "moves no logits", "Cross-attention", "seq2seq"),
    "one source length": Defect(
        OneSourceLength, "source", "source of 1 tokens: RuntimeError", "any length", "seq2seq",
        also=("memory",),
    ),
    "ignores its mask": Defect(IgnoresItsMask, "padding", "ids under the mask .right", "every attention", "masked"),
    "pools padding": Defect(
        lambda: PoolsPadding(K), "padding", "ids under the mask", "every mean", "classification"
    ),
    "counts from the end": Defect(CountsFromTheEnd, "padding", "longer input moves earlier", "counted from the end"),
    "dropout in eval": Defect(
        zoo.AlwaysDropout, "determinism", "eval mode: logits differ", "training=self.training"
    ),
    "remembers its last call": Defect(
        Remembers, "determinism", "eval mode: logits differ", "kept between calls",
        also=("causality", "batch independence"),
    ),
    "probabilities": Defect(
        zoo.Probabilities, "stability", "probabilities", "Drop the softmax", also=("learning",)
    ),
    "NaN for one id": Defect(LogOfTheId, "stability", "NaN or infinite logits for lowest id input"),
    "too loud for fp16": Defect(Loud, "stability", "loud gives .*beyond fp16", "bf16", status="warn"),
    "exploding": Defect(zoo.exploding, "initialisation", "exploding", "std 0.02"),
    "echoes its input": Defect(EchoesItsInput, "initialisation", "loss on random", "std 0.02", status="warn"),
    "tied by a copy": Defect(CopiedHead, "parameters", "tok.weight = out transposed", "share", status="warn"),
}  # fmt: skip
