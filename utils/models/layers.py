"""What the blocks of gpt and llama share: feed-forward layer, normed heads, mixed values; knows no positions or masks.

B = batch, T = tokens, C = n_embd, H = n_head, K = n_kv_head, D = C / H (channels per head).

Some functions have a backward pass written out (`torch.autograd.Function`), each beside torch's own operations for the
same: `by_hand` says which is taken.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.config.schema import ModelShape

# GELU, approximated by tanh, is x sigmoid(GELU_LINEAR x + GELU_CUBIC x^3).
GELU_LINEAR = 2 * math.sqrt(2 / math.pi)
GELU_CUBIC = 0.044715 * GELU_LINEAR


def by_hand(x: Tensor) -> bool:
    """Whether to take a backward pass that is written out, for what is computed from `x`: in training alone.

    Never in an export (`torch.jit.trace`, `torch.export`, and so ONNX): no other program knows such a function.
    """
    if not (x.requires_grad and torch.is_grad_enabled()) or torch.jit.is_tracing():
        return False
    if hasattr(torch.compiler, "is_exporting"):
        return not torch.compiler.is_exporting()
    return not torch.compiler.is_compiling()  # torch 2.6 tells an export only as one of the things that compile


class MLP(nn.Module):
    """Each token thinks on its own, in n_hidden channels.

    `activation` is one of

    - gelu: the tanh approximation that GPT-2 was trained with (Hendrycks & Gimpel 2016,
      https://arxiv.org/abs/1606.08415);
    - relu2: the square of what is above 0 (So et al. 2021, Primer, section 4.1, https://arxiv.org/abs/2109.08668);
    - swiglu: one half gates the other (Shazeer 2020, https://arxiv.org/abs/2002.05202).
    """

    def __init__(self, shape: ModelShape, activation: str, bias: bool) -> None:
        super().__init__()
        self.activation, n_hidden = activation, shape.n_hidden or usual_width(shape.n_embd, activation)
        if activation == "swiglu":
            self.gate = nn.Linear(shape.n_embd, n_hidden, bias=bias)
        self.up = nn.Linear(shape.n_embd, n_hidden, bias=bias)
        self.down = nn.Linear(n_hidden, shape.n_embd, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.activation == "swiglu":
            return self.down(F.silu(self.gate(x)) * self.up(x))  # (B, T, C)
        act = relu2 if self.activation == "relu2" else gelu
        return self.down(act(self.up(x)))  # (B, T, C)


def usual_width(n_embd: int, activation: str) -> int:
    """Channels of the feed-forward layer where nobody names them: every activation costs 8 C^2 weights."""
    # Three matrices of 8/3 C cost what two of 4 C do; a multiple of 32 suits the hardware.
    return 32 * math.ceil(8 * n_embd / 3 / 32) if activation == "swiglu" else 4 * n_embd


def gelu(x: Tensor) -> Tensor:
    """GELU, approximated by tanh."""
    if x.device.type == "cpu" and torch.compiler.is_compiling() and by_hand(x):
        return SigmoidGelu.apply(x)  # type: ignore[no-any-return]
    return F.gelu(x, approximate="tanh")


class SigmoidGelu(torch.autograd.Function):
    """`gelu` for kernels that torch compiles for a CPU, where a tanh takes five times as long as an exponential.

    0.5 x (1 + tanh(u)) is x sigmoid(2 u). Within a compiled kernel all is fp32, and only the result is rounded.
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> Tensor:
        """Any shape."""
        ctx.save_for_backward(inputs[0])
        x = inputs[0].to(torch.promote_types(inputs[0].dtype, torch.float32))
        return (x * torch.sigmoid(x * (GELU_LINEAR + GELU_CUBIC * x * x))).type_as(inputs[0])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        """s + x s (1 - s) (2 u)' times the result's gradient, s being the sigmoid."""
        x = ctx.saved_tensors[0].to(torch.promote_types(grads[0].dtype, torch.float32))
        s = torch.sigmoid(x * (GELU_LINEAR + GELU_CUBIC * x * x))
        slope = s + x * s * (1 - s) * (GELU_LINEAR + 3 * GELU_CUBIC * x * x)
        return (slope * grads[0]).type_as(grads[0])


def relu2(x: Tensor) -> Tensor:
    """max(x, 0) squared."""
    return SquaredRelu.apply(x) if by_hand(x) else F.relu(x).square()  # type: ignore[no-any-return]


class SquaredRelu(torch.autograd.Function):
    """`relu2` with a backward pass in one sweep: what is kept is 0 where the slope is, so no mask is needed."""

    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> Tensor:
        """Any shape."""
        above = torch.relu(inputs[0])
        ctx.save_for_backward(above)
        return above * above

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        """2 max(x, 0) times the result's gradient."""
        (above,) = ctx.saved_tensors
        return (above * 2).mul_(grads[0])  # in this order: a small gradient is not rounded before it is doubled


class QKNorm(nn.Module):
    """RMSNorm of queries and of keys in each head, which keeps their products, and so the softmax, from saturating.

    Henry et al. 2020, https://arxiv.org/abs/2010.04245, section 3; Dehghani et al. 2023, https://arxiv.org/abs/2302.05442,
    section 2. The gains are one per channel, alike for all heads, as in transformers' Qwen3.
    """

    def __init__(self, n_head: int, n_kv_head: int, head_dim: int, eps: float) -> None:
        super().__init__()
        self.n_head, self.n_kv_head = n_head, n_kv_head
        self.q_norm, self.k_norm = nn.RMSNorm(head_dim, eps=eps), nn.RMSNorm(head_dim, eps=eps)

    def forward(self, qk: Tensor) -> Tensor:
        """Queries, then keys, (B, T, H + K, D), before positions turn them: the same, normed."""
        q, k = self.q_norm.weight, self.k_norm.weight
        gain = torch.cat((q.expand(self.n_head, -1), k.expand(self.n_kv_head, -1)))  # (H + K, D)
        if norms_by_hand(qk):
            y: Tensor = ScaledToUnit.apply(qk, gain, self.q_norm.eps)  # both in one pass
        else:
            y = F.rms_norm(qk, qk.shape[-1:], eps=self.q_norm.eps) * gain
        return y.type_as(qk)


class RMSNorm(nn.RMSNorm):
    """torch's own (Zhang & Sennrich 2019, https://arxiv.org/abs/1910.07467), but for training on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        if norms_by_hand(x):
            y: Tensor = ScaledToUnit.apply(x, self.weight, self.eps)
            return y.type_as(x)
        return super().forward(x)


def norms_by_hand(x: Tensor) -> bool:
    """Whether to take `ScaledToUnit`: on a CPU torch norms in a dozen small steps, and most of them in fp32."""
    return x.device.type == "cpu" and by_hand(x)


class ScaledToUnit(torch.autograd.Function):
    """RMSNorm with its backward pass written out: two thirds of torch's time on a CPU in fp32, a third in bf16.

    In bf16 it rounds twice where torch rounds once: 0.0024 of what it gives is rounding, torch's 0.0017.
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        """x, its gain and epsilon."""
        x, gain, eps = inputs
        size = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))
        scale = size.square_().div_(x.shape[-1]).add_(eps).rsqrt_().type_as(x)
        unit = x * scale
        ctx.save_for_backward(unit, gain, scale)
        return unit * gain

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        """The result's gradient without its part along x, which a norm takes away; and that of the gain."""
        unit, gain, scale = ctx.saved_tensors
        dy = grads[0].contiguous()  # that of heads comes transposed, over which every sweep below is slower
        along = dy * unit
        if gain.dim() == 1:
            share = (along @ (gain / len(gain)))[..., None]  # a product is faster than a mean of products
        else:
            share = (along * gain).mean(dim=-1, keepdim=True)
        return (dy * gain).addcmul_(unit, share, value=-1).mul_(scale), along.sum_to_size(gain.shape), None


class ValueMixer(nn.Module):
    """A layer's values are mixed with the first layer's, which deep layers forget, in a share that is learned.

    v = share x v + (1 - share) x first, from a half each on (Zhou et al. 2024, https://arxiv.org/abs/2410.17897,
    section 3.2). The first layer only hands its values on.
    """

    def __init__(self, layer: int) -> None:
        super().__init__()
        self.share = nn.Parameter(torch.full((1,), 0.5)) if layer else None

    def forward(self, v: Tensor, first: Tensor | None) -> tuple[Tensor, Tensor]:
        """This layer's values and the first layer's, of any one shape: the mixture, and the first layer's."""
        if self.share is None or first is None:
            return v, v
        return torch.lerp(first, v, self.share.type_as(v)), first
