"""Sound models of every kind, called as the house calls them; ids up to V, texts up to BLOCK tokens."""

from collections.abc import Callable

import torch
from torch import nn

from utils.config.schema import ModelShape
from utils.models.adapter import adapt
from utils.models.registry import build_model
from utils.tests.validation import zoo
from utils.tests.validation.zoo import BLOCK, GPT, HEADS, C, V

K = 4  # classes


class MaskedEncoder(nn.Module):
    """Sees both ways; with `attention_mask` it does not see padding. With `classes`, one answer per text."""

    def __init__(self, classes=0):
        super().__init__()
        self.supports_attention_mask = True
        self.tok, self.pos = nn.Embedding(V, C), nn.Embedding(BLOCK, C)
        layer = nn.TransformerEncoderLayer(C, HEADS, 2 * C, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.classes, self.head = classes, nn.Linear(C, classes or V)
        for table in (self.tok, self.pos, self.head):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, idx, attention_mask=None):
        mask = torch.ones_like(idx) if attention_mask is None else attention_mask
        x = self.tok(idx) + self.pos(torch.arange(idx.shape[1]))
        x = self.layers(x, src_key_padding_mask=mask == 0)
        if self.classes:
            x = self.pool(x, mask.unsqueeze(-1))
        return self.head(x)

    def pool(self, x, mask):
        return (x * mask).sum(1) / mask.sum(1)


class Classifier(GPT):
    """Reads both ways and takes no mask."""

    def __init__(self):
        super().__init__(mask="none")
        self.head = nn.Linear(C, K)

    def forward(self, idx):
        return self.head(self.hidden(idx).mean(1))


class Seq2Seq(nn.Module):
    def __init__(self):
        super().__init__()
        self.tok, self.pos, self.head = nn.Embedding(V, C), nn.Embedding(BLOCK, C), nn.Linear(C, V)
        self.net = nn.Transformer(C, HEADS, 2, 2, 2 * C, dropout=0.0, batch_first=True, norm_first=True)
        for table in (self.tok, self.pos, self.head):
            nn.init.normal_(table.weight, std=0.02)

    def embed(self, ids):
        return self.tok(ids) + self.pos(torch.arange(ids.shape[1]))

    def mask(self, length):
        return nn.Transformer.generate_square_subsequent_mask(length)

    def forward(self, source, target):
        return self.head(self.net(self.embed(source), self.embed(target), tgt_mask=self.mask(target.shape[1])))


class Experts(nn.Module):
    """Every token goes to two of four; what the router owes for balance is in `aux`."""

    def __init__(self):
        super().__init__()
        self.router, self.experts = nn.Linear(C, 4), nn.ModuleList(nn.Linear(C, C) for _ in range(4))

    def forward(self, x):
        chances = self.router(x).softmax(-1)
        best, which = chances.topk(2, -1)
        gates = torch.zeros_like(chances).scatter(-1, which, best)
        self.aux = (gates.bool().float().mean((0, 1)) * chances.mean((0, 1))).sum()
        return sum(gates[..., i : i + 1] * expert(x).relu() for i, expert in enumerate(self.experts))


class MoE(GPT):
    aux_loss = None

    def __init__(self):
        super().__init__()
        for block in self.blocks:
            block.mlp = Experts()

    def forward(self, idx):
        logits = super().forward(idx)
        self.aux_loss = 0.01 * sum(block.mlp.aux for block in self.blocks)
        return logits

    def __deepcopy__(self, memo):
        raise TypeError("the last auxiliary loss hangs on a graph")


def ours(kind: str) -> Callable[[], nn.Module]:
    shape = ModelShape(n_layer=2, n_head=4, n_embd=C, n_hidden=128, block_size=BLOCK, vocab_size=V)
    return lambda: build_model(kind, shape)


def hub(name: str, config_name: str, task: str, **sizes) -> Callable[[], nn.Module]:
    """A tiny model of transformers with random weights."""

    def make() -> nn.Module:
        import transformers

        config = getattr(transformers, config_name)(bos_token_id=1, eos_token_id=1, **sizes)
        return adapt(getattr(transformers, name)(config), config.to_dict(), task)

    return make


WIDE = {"vocab_size": V, "hidden_size": C, "num_hidden_layers": 2, "num_attention_heads": HEADS}
LONG = WIDE | {"intermediate_size": 2 * C, "max_position_embeddings": BLOCK}
FEW = LONG | {"num_key_value_heads": 2, "pad_token_id": 0}

GOOD: dict[str, tuple[Callable[[], nn.Module], str]] = {
    **{name: (make, "causal") for name, make in zoo.GOOD.items()},
    **{f"our {kind}": (ours(kind), "causal") for kind in ("gpt", "llama", "bdh")},
    "experts": (MoE, "causal"),
    "encoder without mask": (lambda: GPT(mask="none"), "masked"),
    "encoder": (MaskedEncoder, "masked"),
    "classifier without mask": (Classifier, "classification"),
    "classifier": (lambda: MaskedEncoder(K), "classification"),
    "encoder-decoder": (Seq2Seq, "seq2seq"),
    "transformers GPT-2": (
        hub("GPT2LMHeadModel", "GPT2Config", "causal", vocab_size=V, n_embd=C, n_layer=2, n_head=HEADS,
            n_positions=BLOCK),
        "causal",
    ),
    "transformers Llama": (hub("LlamaForCausalLM", "LlamaConfig", "causal", **FEW), "causal"),
    "transformers Mistral": (hub("MistralForCausalLM", "MistralConfig", "causal", **FEW, sliding_window=8), "causal"),
    "transformers BERT": (hub("BertForMaskedLM", "BertConfig", "masked", **LONG), "masked"),
    "transformers BERT classifier": (
        hub("BertForSequenceClassification", "BertConfig", "classification", **LONG, num_labels=K),
        "classification",
    ),
    "transformers T5": (
        hub("T5ForConditionalGeneration", "T5Config", "seq2seq", vocab_size=V, d_model=C, d_kv=8, d_ff=64, num_layers=2,
            num_heads=HEADS, decoder_start_token_id=0, n_positions=BLOCK),
        "seq2seq",
    ),
}  # fmt: skip

# What a sound model is warned of, and why that is no false alarm.
WARNED = {
    "zero-init residuals": {"gradients"},  # deliberate, and said to be: a projection that starts at zero
    "zero-init everything": {"gradients", "stability"},
    "experts": {"gradients"},  # at the start no token goes to one of the experts
}
