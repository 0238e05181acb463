"""Mixed precision: the forward pass in 16 bits, weights and optimizer in 32."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast_for(precision: str, device: torch.device) -> Callable[[], AbstractContextManager[object]]:
    """A function that makes the context for one forward pass (nothing for fp32)."""
    if precision == "fp32":
        return nullcontext
    return lambda: torch.autocast(device.type, DTYPES[precision])


def build_scaler(precision: str, device: torch.device) -> torch.amp.GradScaler:
    """Loss scaling for fp16 (Micikevicius et al. 2018): small gradients would vanish. Passes others through."""
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")
