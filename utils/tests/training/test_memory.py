"""Out of memory, for real: the allocator of a process of its own is given a limit and refuses."""

import errno
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from tests.conftest import ROOT
from utils.training import memory
from utils.training.memory import free_bytes, is_out_of_memory, limited

CPU = torch.device("cpu")
linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the memory a process maps")

# A model of 0.2M weights on 8 texts of 256 tokens: its activations are many times its weights.
SETUP = """
import json, sys, torch
from utils.config.schema import ModelShape, TrainConfig
from utils.data.batching.batches import EvalBatches, TrainBatches
from utils.data.batching.tasks import TaskBatches
from utils.models.registry import build_model
from utils.training.evaluate import evaluate
from utils.training.memory import GB, _own, limited, release
from utils.training.step import Stepper

torch.set_num_threads(1)
torch.manual_seed(0)
shape = ModelShape(vocab_size=512, block_size=256, n_layer=4, n_head=4, n_embd=64)
model = build_model("gpt", shape)
ids = torch.randint(0, 512, (8000,)).numpy()
config = TrainConfig(optimizer="adamw", batch_size=8, warmup_steps=0, max_steps=9)
train = TaskBatches(TrainBatches(ids, 256, 8, 0))
told = []
"""
STEPS = """
import copy
first = model
def run(precision, megabytes, rows):
    told = []
    model = copy.deepcopy(first)
    stepper = Stepper(model, config, train, torch.device("cpu"), precision, halved=told.append, ahead=False)
    stepper.rows = rows
    stepper.forget()
    with limited((_own("VmData") + megabytes * 1e6) / GB if megabytes else 0, torch.device("cpu")):
        losses = [float(stepper.step(i, 1e-3).loss) for i in range(2)]
    weights = torch.cat([p.detach().flatten() for p in model.parameters()]).double()
    clean = all(p.grad is None for p in (*model.parameters(), *stepper.working.parameters()))
    return {"told": told, "losses": losses, "sum": weights.sum().item(), "norm": weights.norm().item(), "clean": clean}

precision, megabytes = sys.argv[1], float(sys.argv[2])
tight = run(precision, megabytes, 8)  # first: later there would be memory that the C library has kept
exact = run(precision, 0, tight["told"][-1]) if tight["told"] else None
print(json.dumps({"tight": tight, "exact": exact, "plain": run(precision, 0, 8)}))
"""


def child(code: str, *words: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MALLOC_ARENA_MAX": "1"}
    return subprocess.run(
        [sys.executable, "-c", SETUP + code, *map(str, words)], env=environment, capture_output=True, text=True
    )  # fmt: skip


def told(code: str, *words: object) -> dict:
    done = child(code, *words)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you ..."
        ),
        RuntimeError("unable to mmap 4000 bytes from file <x>: Cannot allocate memory (12)"),
        RuntimeError("could not create a memory object"),
        RuntimeError("could not create a primitive"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GiB, other allocations: 1.00 GiB)"),
    ],
)
def test_the_ways_to_say_that_memory_ran_out(error: Exception):
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied (3x4 and 5x6)"),
        RuntimeError("CUDA error: device-side assert triggered"),
        RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED"),
        ValueError("out of memory: says a value"),
        OSError(errno.ENOSPC, "No space left on device"),
        IndexError("index out of range in self"),
        KeyboardInterrupt(),
    ],
)
def test_nothing_else_is_taken_for_it(error: BaseException):
    assert not is_out_of_memory(error)


def test_what_this_torch_and_numpy_say_is_understood():
    for ask in (lambda: torch.empty(1 << 48), lambda: np.empty(1 << 50)):
        with pytest.raises((RuntimeError, MemoryError)) as caught:
            ask()
        assert is_out_of_memory(caught.value)


@linux
@pytest.mark.parametrize(("precision", "megabytes"), [("fp32", 30), ("fp32", 60)])
def test_a_step_that_ran_out_of_memory_is_the_same_step(precision: str, megabytes: int):
    found = told(STEPS, precision, megabytes)
    tight, exact, plain = found["tight"], found["exact"], found["plain"]
    assert plain["told"] == []
    assert tight["told"], "memory was enough: the test asks for less than it should"
    assert tight["clean"]
    assert tight["losses"] == exact["losses"]  # nothing of the attempts that failed is left in the gradient
    assert tight["sum"] == exact["sum"]
    assert tight["losses"] == pytest.approx(plain["losses"], rel=1e-5 if precision == "fp32" else 1e-3)
    assert tight["norm"] == pytest.approx(plain["norm"], rel=1e-5 if precision == "fp32" else 1e-3)


BACKWARD = """
def run(refuse, rows):
    told, calls = [], []
    torch.manual_seed(0)
    model = build_model("gpt", shape)
    stepper = Stepper(model, config, train, torch.device("cpu"), "bf16", halved=told.append, ahead=False)
    stepper.rows = rows
    def hook(gradient):
        calls.append(1)
        if refuse and len(calls) == 1:
            torch.empty(1 << 48)  # no machine has it
    next(p for n, p in stepper.working.named_parameters() if n.startswith("blocks.0.")).register_hook(hook)
    losses = [float(stepper.step(i, 1e-3).loss) for i in range(2)]
    return {"told": told, "losses": losses, "sum": sum(p.double().sum().item() for p in model.parameters())}
print(json.dumps([run(True, 8), run(False, 4)]))
"""


def test_half_a_backward_pass_in_bf16_leaves_nothing_behind():
    tight, exact = told(BACKWARD)
    assert (tight["told"], exact["told"]) == ([4], [])
    assert tight["losses"] == exact["losses"]
    assert tight["sum"] == exact["sum"]


@linux
def test_one_example_too_many_says_what_to_do():
    done = child(STEPS, "fp32", 4)
    assert done.returncode == 1
    assert "RuntimeError: one example at a time is more than fits into memory" in done.stderr
    assert "lower data.seq_len, train a smaller model" in done.stderr


STATE = """
from utils.training import memory
stepper = Stepper(model, config, train, torch.device("cpu"), "fp32", ahead=False)
big = torch.nn.Parameter(torch.zeros(9_000_000))
stepper.optimizer.add_param_group({"params": [big]})
stepper._parameters.append(big)
before = [p.detach().clone() for p in model.parameters()]
kept = stepper._gradients
def gradients(number):
    told = kept(number)
    big.grad = room.pop() if room else torch.zeros_like(big)
    return told
stepper._gradients = gradients
room = [torch.zeros_like(big)]
words = ""
with limited((_own("VmData") + 60e6) / GB, torch.device("cpu")):
    try:
        stepper.rows = 1
        stepper.step(0, 1e-3)
    except RuntimeError as error:
        words = str(error)
same = all(torch.equal(a, b) for a, b in zip(before, model.parameters()))
state = len(stepper.optimizer.state)
stepper.rows = 8
stepper.step(0, 1e-3)
steps = {float(s["step"]) for s in stepper.optimizer.state.values()}
print(json.dumps({"words": words, "same": same, "state": state, "steps": sorted(steps)}))
"""


@linux
def test_no_room_for_what_the_optimizer_keeps_changes_no_weight():
    """72 MB of moments for one weight that comes last: the others' would have been stepped before they are made."""
    found = told(STATE)
    assert "more than fits into memory" in found["words"]
    assert found["same"]
    assert found["state"] == 0
    assert found["steps"] == [1.0]


EVALUATE = """
from contextlib import nullcontext
from utils.training import evaluate as module
val = TaskBatches(EvalBatches(ids, 256, 16))
asked, told, count = [], [], module._count
def counted(model, batch, device, tally):
    asked.append(len(batch.labels))
    count(model, batch, device, tally)
module._count = counted
for megabytes in (0, 10):
    release(torch.device("cpu"))
    with limited((_own("VmData") + megabytes * 1e6) / GB if megabytes else 0, torch.device("cpu")):
        found = evaluate(model, val, torch.device("cpu"), nullcontext)
    told.append({"loss": found.loss, "accuracy": found.accuracy, "tokens": found.tokens, "least": min(asked[:-1])})
print(json.dumps(told))
"""


@linux
def test_an_evaluation_that_ran_out_of_memory_is_the_same_evaluation():
    whole, tight = told(EVALUATE)
    assert whole["tokens"] == tight["tokens"] == 7999
    assert whole["least"] == 16 > tight["least"]
    assert tight["loss"] == pytest.approx(whole["loss"], rel=1e-6)
    assert tight["accuracy"] == whole["accuracy"]


@linux
def test_a_limit_is_kept_and_lifted():
    before = free_bytes()
    done = child(
        "a = limited(_own('VmData') / GB + 0.2, torch.device('cpu'))\n"
        "with a:\n"
        "    try:\n"
        "        torch.empty(100_000_000)\n"
        "    except RuntimeError as error:\n"
        "        print('refused', error)\n"
        "print('whole', torch.empty(100_000_000).numel())\n"
    )
    assert "refused" in done.stdout
    assert "whole 100000000" in done.stdout
    with (
        pytest.raises(ValueError, match=r"memory_limit_gb=0.01 is less than is taken before the first step"),
        limited(0.01, CPU),
    ):
        pass
    assert before is not None
    assert before > 100_000_000


@linux
def test_without_a_limit_the_machine_is_one_unless_it_would_bind_at_once(monkeypatch):
    import resource

    taken, before = memory._own("VmData"), resource.getrlimit(resource.RLIMIT_DATA)
    for times, limit in ((3, 3 * taken), (1.5, before[0]), (0.5, before[0])):
        monkeypatch.setattr(memory, "_machine_bytes", lambda times=times: int(times * taken))
        with limited(0, CPU):
            assert resource.getrlimit(resource.RLIMIT_DATA)[0] == limit
        assert resource.getrlimit(resource.RLIMIT_DATA) == before
