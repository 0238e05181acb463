"""Honest work for a boxed process: what training needs must go on inside."""

import ctypes
import fcntl
import json
import mmap
import os
import sys
import time
from pathlib import Path


def train(folder: str) -> None:
    """Train a step with two threads, save the weights, write down what was seen."""
    import torch
    from safetensors.torch import save_file

    torch.set_num_threads(2)
    layer = torch.nn.Linear(256, 256)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    before = layer.weight.detach().clone()
    layer(torch.randn(512, 256)).square().mean().backward()
    optimizer.step()
    save_file({name: tensor.contiguous() for name, tensor in layer.state_dict().items()}, f"{folder}/w.safetensors")
    changed = bool((layer.weight != before).any())
    tasks = len(list(Path("/proc/self/task").iterdir()))
    seen = {"threads": torch.get_num_threads(), "tasks": tasks, "changed": changed}
    Path(folder, "result.json").write_text(json.dumps(seen))


def look(folder: str, descriptor: int) -> None:
    """Write down what is left of the parent in here."""
    names = sorted(int(name) for name in os.listdir("/proc/self/fd"))
    said = {"environment": dict(os.environ), "input": sys.stdin.read(), "torch": "torch" in sys.modules}
    said["descriptors"] = [name for name in names if name > 2][:-1]  # the last one is that of the listing
    said["held"] = os.path.exists(f"/proc/self/fd/{descriptor}")
    said["ways"] = [fcntl.fcntl(name, fcntl.F_GETFL) & os.O_ACCMODE for name in (1, 2)]
    said["folder"], said["arguments"] = os.getcwd(), sys.argv
    Path(folder, "look.json").write_text(json.dumps(said))


def mark(folder: str) -> None:
    """Leave a trace."""
    Path(folder, "mark").write_text("x")


def hang(folder: str = "") -> None:
    """Never end; with a folder, first say under which number."""
    if folder:
        Path(folder, "pid").write_text(str(os.getpid()))
    while True:
        time.sleep(60)


def crash() -> None:
    """Read where nothing is."""
    ctypes.string_at(0)


def eat() -> None:
    """Take more memory than there can be."""
    bytearray(64 << 30)


def eat_tensors() -> None:
    """The same, with torch."""
    import torch

    torch.zeros(64 << 30, dtype=torch.uint8)


def spin() -> None:
    """Use up processor time."""
    while True:
        pass


def fail() -> None:
    """Raise."""
    raise ValueError("as it should")


def leave(code: int) -> int:
    """End with a code."""
    return code


def old_call() -> None:
    """Call the kernel as 32-bit programs of x86 do: other numbers, which the filter's table does not hold."""
    code = b"\xb8\x14\x00\x00\x00\xcd\x80\xc3"  # mov eax, 20; int 0x80; ret
    memory = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    memory.write(code)
    ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(memory)))()
