"""Muon: matrices move by their orthogonalised momentum, all else by AdamW, in one optimizer; knows no model."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from utils.runtime.device import multiplies_bf16

# Each triple is an odd polynomial a x + b x^3 + c x^5 of the singular values; one after the other they bring all from
# 0.003 ... 1 to 0.78 ... 1.22. Each is the best of its degree for what the one before leaves: Amsel et al. 2025, "The
# Polar Express" (https://arxiv.org/abs/2505.16932), solved for this interval, with 2 % of room at the
# upper end of each: rounding in 16 bits may push values there, and beyond it the polynomials run away. `test_muon.py`
# solves it again. Four of them do what five of Jordan et al. do, whose result is spread over 0.68 ... 1.2.
COEFFICIENTS = (
    (8.221763, -23.346858, 16.633755),
    (3.972757, -2.844937, 0.517015),
    (3.473474, -2.505746, 0.481018),
    (2.504367, -1.790724, 0.407061),
)
MATCHED_RMS = 0.2  # the root mean square of AdamW's usual update, which a matrix's is scaled to
TINIEST = 1e-36  # a sum of powers below it is that of a matrix of zeros
# Elements that go through the products at once: on a CPU what stays in its cache, elsewhere what bounds the memory.
TOGETHER, ELSEWHERE = {"cpu": 2**20}, 2**24

Parts = tuple[int, tuple[int, ...]]  # the dimension along which a matrix is several, and their sizes
Stack = tuple[list[Tensor], list[Tensor], list[Tensor]]  # weights, gradients and momenta of matrices of one shape


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) for some groups, AdamW for the others.

    A group with `orthogonal=True` holds matrices. With the gradient g, momentum m <- mu m + (1 - mu) g, Nesterov's
    u = mu m + (1 - mu) g, and O the nearest matrix with orthonormal rows or columns to u (all singular values 1, within
    about 0.7 ... 1.2): w <- w - lr (weight_decay w + 0.2 sqrt(max(rows, columns)) O). The factor gives the update the
    size of AdamW's, so one learning rate and weight decay suit both (Liu et al. 2025, "Muon is Scalable for LLM
    Training", https://arxiv.org/abs/2502.16982, section 2.2). Its `parts` says of each parameter how it is cut
    into the matrices it holds side by side (queries, keys, values), or None; each is orthogonalised by itself.
    The other groups are AdamW in torch's fused kernel. `dtype` is the format of the orthogonalising products, whatever
    the model computes in; None = `fast_dtype`.

    Obeys the attributes `grad_scale` and `found_inf` as torch's fused optimizers do, without waiting for a device:
    gradients are divided by the one, and where the other is 1 weights, momenta and counts stay as they are. All that
    it keeps is made before the first weight is changed, by such a step, too.

    State, fp32 and of the parameter's shape: `momentum`; for AdamW `exp_avg`, `exp_avg_sq` and a scalar `step`.
    Raises ValueError for an orthogonal group with a parameter that is no matrix.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float,
        *,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        dtype: torch.dtype | None = None,
    ) -> None:
        defaults = {
            "lr": lr, "momentum": momentum, "betas": betas, "eps": eps, "weight_decay": weight_decay,
            "orthogonal": False, "parts": None,
            "fused": True,  # tells torch's load_state_dict to leave `step` on the parameter's device
        }  # fmt: skip
        super().__init__(groups, defaults)
        self.dtype = dtype
        self._rooms: dict[tuple[int, int, int], Room] = {}
        self._step_supports_amp_scaling = True  # tells GradScaler that grad_scale and found_inf are obeyed
        for group in self.param_groups:
            group["parts"] = group["parts"] or [None] * len(group["params"])
            shapes = [tuple(p.shape) for p in group["params"] if p.dim() != 2]
            if group["orthogonal"] and shapes:
                raise ValueError(f"only matrices can be orthogonalised, and these parameters are none: {shapes}")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step from the gradients at hand; parameters without one are left alone."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        groups = [group for group in self.param_groups if any(p.grad is not None for p in group["params"])]
        stacks = [(group, stack) for group in groups if group["orthogonal"] for stack in self._stacks(group)]
        for group in groups:
            if not group["orthogonal"]:
                self._make_moments(group)
        for _, (weights, _, _) in stacks:
            if weights[0].device.type == "cpu":  # where it is kept
                self._room_for(weights)
        scale, found = (getattr(self, name, None) for name in ("grad_scale", "found_inf"))
        if found is not None and found.device.type == "cpu":  # there it can be asked for nothing
            if found.item():
                return loss
            found = None
        for group, stack in stacks:
            self._orthogonal_step(*stack, group, scale, found)
        for group in groups:
            if not group["orthogonal"]:
                self._adamw_step(group, scale, found)
        return loss

    def _stacks(self, group: dict[str, Any]) -> list[Stack]:
        """Matrices of one shape go through the products together: a few large ones instead of many small."""
        alike: dict[tuple[int, int], list[tuple[Tensor, ...]]] = {}
        for p, parts in zip(group["params"], group["parts"], strict=True):
            if p.grad is not None:
                if "momentum" not in self.state[p]:
                    self.state[p]["momentum"] = torch.zeros_like(p, memory_format=torch.contiguous_format)
                for pieces in zip(*(_cut(x, parts) for x in (p, p.grad, self.state[p]["momentum"])), strict=True):
                    alike.setdefault((pieces[0].shape[0], pieces[0].shape[1]), []).append(pieces)
        stacks: list[Stack] = []
        for (rows, columns), found in alike.items():
            at_once = max(1, TOGETHER.get(found[0][0].device.type, ELSEWHERE) // (rows * columns))
            for i in range(0, len(found), at_once):
                weights, gradients, momenta = (list(column) for column in zip(*found[i : i + at_once], strict=True))
                stacks.append((weights, gradients, momenta))
        return stacks

    def _orthogonal_step(
        self,
        weights: list[Tensor],
        gradients: list[Tensor],
        momenta: list[Tensor],
        group: dict[str, Any],
        scale: Tensor | None,
        found: Tensor | None,
    ) -> None:
        """One step of matrices of one shape."""
        (rows, columns), device = weights[0].shape, weights[0].device
        mu, lr, decay = group["momentum"], group["lr"], group["lr"] * group["weight_decay"]
        room = self._room_for(weights)
        updates, pieces = room.updates, list(room.updates.unbind())
        for piece, gradient in zip(pieces, gradients, strict=True):
            torch.div(gradient, 1.0 if scale is None else scale.to(device), out=piece)
        taken: float | Tensor = 1.0
        if found is not None:
            taken = 1.0 - found.to(device)
            # m + 0.05 (m - m) is m to the last bit, and nothing that is not finite is computed with.
            for piece, momentum in zip(pieces, momenta, strict=True):
                torch.where(taken.bool(), piece, momentum, out=piece)
        torch._foreach_lerp_(momenta, pieces, 1.0 - mu)
        torch._foreach_lerp_(pieces, momenta, mu)
        if room.x.dtype == torch.float16:  # it ends at 6e-8, and gradients may be smaller
            updates.div_(torch.linalg.vector_norm(updates, dim=(1, 2), keepdim=True).clamp_(min=TINIEST))
        updates.copy_(orthogonal(room.x.copy_(updates), room))
        updates.mul_(-lr * MATCHED_RMS * math.sqrt(max(rows, columns)) * taken)
        torch._foreach_mul_(weights, 1.0 - decay * taken)
        torch._foreach_add_(weights, pieces)

    def _room_for(self, weights: list[Tensor]) -> "Room":
        """Memory to work in. A CPU takes longer to hand out new memory than to add up what is in it."""
        shape, device = (len(weights), weights[0].shape[0], weights[0].shape[1]), weights[0].device
        if device.type != "cpu":
            return Room(shape, device, self.dtype)
        if shape not in self._rooms:
            self._rooms[shape] = Room(shape, device, self.dtype)
        return self._rooms[shape]

    def _make_moments(self, group: dict[str, Any]) -> None:
        for p in group["params"]:
            if p.grad is not None and not self.state[p]:
                self.state[p]["step"] = torch.zeros((), dtype=torch.float32, device=p.device)
                self.state[p]["exp_avg"] = torch.zeros_like(p, memory_format=torch.preserve_format)
                self.state[p]["exp_avg_sq"] = torch.zeros_like(p, memory_format=torch.preserve_format)

    def _adamw_step(self, group: dict[str, Any], scale: Tensor | None, found: Tensor | None) -> None:
        params = [p for p in group["params"] if p.grad is not None]
        states = [self.state[p] for p in params]
        adamw(
            params,
            [p.grad for p in params],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            grad_scale=scale,
            found_inf=found,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


class Room:
    """Memory for `orthogonal` and what comes before and after it, of N matrices (m, n)."""

    def __init__(self, shape: tuple[int, int, int], device: torch.device, dtype: torch.dtype | None = None) -> None:
        dtype, small = dtype or fast_dtype(device), min(shape[1:])
        self.updates = torch.empty(shape, device=device)  # fp32
        self.x, self.y = (torch.empty(shape, dtype=dtype, device=device) for _ in range(2))
        self.small = [torch.empty((shape[0], small, small), dtype=dtype, device=device) for _ in range(4)]


def orthogonal(x: Tensor, room: Room | None = None) -> Tensor:
    """The nearest matrices with orthonormal rows or columns: (N, m, n) in, the same shape and format out.

    Singular values from 0.003 of the largest up (less where many are large) come out within about 0.7 ... 1.2, smaller
    ones grow as far as the polynomials take them; zeros stay zeros. Equal input gives equal output, bit for bit. `room`
    is what it works in, the result's memory too; `x` is written over. In fp16, which ends at 6e-8 and 65504, matrices
    have to come with a norm of about 1.
    """
    room = room or Room((x.shape[0], x.shape[1], x.shape[2]), x.device, x.dtype)
    rows, columns = x.shape[1:]
    left = rows <= columns  # which side the smaller Gram matrix is on; turning tall ones on their side would cost more
    y, (gram, square, factor, spare) = room.y, room.small
    pairs = max(rows, columns) >= 2 * min(rows, columns)
    for i in range(0, len(COEFFICIENTS), 1 + pairs):
        a, b, c = COEFFICIENTS[i]
        torch.bmm(*((x, x.mT) if left else (x.mT, x)), out=gram)  # (N, m, m) with m <= n
        if i == 0:
            # The fourth root of the sum of all fourth powers bounds the largest singular value, closer than the norm of
            # x does: by up to m^(1/4) where many are large, which saves a polynomial. It is on the diagonal of G^2.
            torch.bmm(gram, gram, out=square)
            floor = max(TINIEST, torch.finfo(x.dtype).tiny)
            fourth = square.diagonal(dim1=1, dim2=2).float().sum(1).clamp_(min=floor)[:, None, None]
            bound = fourth.sqrt()  # of the largest eigenvalue of G
            gram.div_(bound.to(x.dtype))
            square.mul_((c / bound).to(x.dtype)).div_(bound.to(x.dtype))  # by one and the other: fp16 ends at 65504
            torch.add(square, gram, alpha=b, out=factor)
        else:
            torch.baddbmm(gram, gram, gram, beta=b, alpha=c, out=factor)
        factor.diagonal(dim1=1, dim2=2).add_(a)  # a + b G + c G^2 takes x to a x + b x^3 + c x^5
        if pairs:  # two polynomials of the small matrix, then one product with the large one
            a, b, c = COEFFICIENTS[i + 1]
            torch.bmm(torch.bmm(factor, gram, out=spare), factor, out=square)  # the Gram matrix it leads to
            torch.baddbmm(square, square, square, beta=b, alpha=c, out=gram).diagonal(dim1=1, dim2=2).add_(a)
            torch.bmm(gram, factor, out=spare)
            factor, spare = spare, factor
        if i == 0:
            factor.mul_(bound.rsqrt().to(x.dtype))
        torch.bmm(*((factor, x) if left else (x, factor)), out=y)
        x, y = y, x
    return x


def fast_dtype(device: torch.device) -> torch.dtype:
    """The format of orthogonalising products: 16 bits where the hardware multiplies them faster, else fp32.

    The result is rough by design, so it loses nothing. A property of the hardware alone: the same in every run.
    """
    if multiplies_bf16(device):
        return torch.bfloat16
    return torch.float16 if device.type == "cuda" else torch.float32


def _cut(x: Tensor, parts: Parts | None) -> tuple[Tensor, ...]:
    return (x,) if parts is None else torch.split(x, list(parts[1]), dim=parts[0])
