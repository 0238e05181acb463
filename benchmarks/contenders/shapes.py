"""The models that are trained, their cost per token, and who trains them; imports nothing heavy."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """One GPT-2: learned positions, LayerNorm and biases, tied embeddings, no dropout."""

    n_layer: int
    n_head: int
    n_embd: int
    block_size: int  # tokens per example, all of them used
    batch_size: int  # examples per optimizer step
    vocab_size: int  # rows of the table

    @property
    def tokens_per_step(self) -> int:
        """Tokens read in one optimizer step."""
        return self.batch_size * self.block_size

    @property
    def parameters(self) -> int:
        """Weights of the model, positions left out: looking them up is no matrix product."""
        block = 12 * self.n_embd**2 + 13 * self.n_embd  # two norms, four linear layers and their biases
        return self.n_layer * block + 2 * self.n_embd + self.vocab_size * self.n_embd

    @property
    def flops_per_token(self) -> int:
        """FLOPs of forward and backward per token: 6 N + 12 L T C, the same for everybody.

        N = `parameters`, L layers, T tokens, C channels (Chowdhery et al. 2022, https://arxiv.org/abs/2204.02311,
        appendix B; their H Q is C). It counts all T x T scores, those that the causal mask removes too.
        """
        return 6 * self.parameters + 12 * self.n_layer * self.block_size * self.n_embd


SHAPES = {
    "0.8M": Shape(4, 4, 128, block_size=64, batch_size=12, vocab_size=65),
    "10.7M": Shape(6, 6, 384, block_size=256, batch_size=16, vocab_size=65),
    "124M": Shape(12, 12, 768, block_size=512, batch_size=2, vocab_size=50304),
}


@dataclass(frozen=True)
class Entry:
    """A trainer in one of its settings."""

    module: str  # the file in this folder that has it
    precision: str = "fp32"  # asked for; what was used stands in the measurement
    compile: str = "off"  # on, off or auto


CONTENDERS = {
    "nanogpt": Entry("nanogpt"),
    "nanogpt-compiled": Entry("nanogpt", compile="on"),
    "hf-fp32": Entry("hugging_face"),
    "hf-bf16": Entry("hugging_face", "bf16"),
    "lightning": Entry("lightning_trainer"),
    "lightning-bf16": Entry("lightning_trainer", "bf16"),
    "ours-fp32": Entry("ours"),
    "ours-bf16": Entry("ours", "bf16"),
    "ours-bf16-compiled": Entry("ours", "bf16", "on"),
    "ours-auto": Entry("ours", "auto", "auto"),
}


def is_ours(name: str) -> bool:
    """Whether a contender is this package, or a peer."""
    return CONTENDERS[name].module == "ours"
