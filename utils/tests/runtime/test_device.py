"""The device and the number format are the ones asked for, or an error says which there are."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from utils.runtime import device as device_module
from utils.runtime.device import (
    cpu_cores,
    cpu_quota,
    describe,
    multiplies_bf16,
    peak_memory,
    pick_device,
    pick_precision,
)
from utils.runtime.peak import gains_from_bf16, has_bf16_instructions
from utils.training.muon import fast_dtype

ROOT = Path(__file__).parents[3]
CPU = torch.device("cpu")
GPU = torch.cuda.is_available()
needs_gpu = pytest.mark.skipif(not GPU, reason="no CUDA GPU here")


def test_auto_takes_the_best_there_is():
    best = "cuda" if GPU else "mps" if torch.backends.mps.is_available() else "cpu"
    assert pick_device("auto") == torch.device(best)
    assert pick_device() == torch.device(best)


def test_the_cpu_is_always_there():
    assert pick_device("cpu") == CPU


@pytest.mark.skipif(GPU, reason="this machine has a CUDA GPU")
def test_a_gpu_that_is_not_there_is_an_error_that_lists_what_is():
    with pytest.raises(ValueError, match=r"^train\.device=cuda is not available here \(available: cpu.*, or auto\)$"):
        pick_device("cuda")


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="this machine has Apple's GPU")
def test_apples_gpu_that_is_not_there_is_an_error():
    with pytest.raises(ValueError, match=r"^train\.device=mps is not available here \(available: cpu"):
        pick_device("mps")


@pytest.mark.parametrize(("wanted", "given"), [("auto", "fp32"), ("fp32", "fp32"), ("bf16", "bf16")])
def test_formats_on_a_cpu_for_a_model_that_gains_nothing_from_bf16(wanted, given):
    assert pick_precision(wanted, CPU, gains=False) == given


def test_a_cpu_computes_in_bf16_where_that_is_faster():
    assert pick_precision("auto", CPU) == ("bf16" if gains_from_bf16(CPU) else "fp32")
    assert pick_precision("fp32", CPU) == "fp32"


def test_one_answer_says_what_is_computed_in_bf16(monkeypatch):
    assert multiplies_bf16(CPU) == has_bf16_instructions()
    for has, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(device_module, "has_bf16_instructions", lambda has=has: has)
        assert (multiplies_bf16(CPU), fast_dtype(CPU)) == (has, dtype)
    assert pick_precision("bf16", CPU) == "bf16"  # slowly, but who asks for it gets it
    assert not multiplies_bf16(torch.device("mps"))


@pytest.mark.parametrize("gains", [True, False])
@pytest.mark.parametrize("began", ["fp32", "bf16"])
def test_a_run_keeps_the_format_it_began_with(began: str, gains: bool):
    assert pick_precision("auto", CPU, gains=gains, began=began) == began
    assert pick_precision("fp32", CPU, gains=gains, began=began) == "fp32"


def test_a_format_that_the_device_lacks_cannot_be_kept():
    assert pick_precision("auto", CPU, gains=False, began="fp16") == "fp32"
    assert pick_precision("auto", CPU, gains=False, began="nonsense") == "fp32"


@pytest.mark.parametrize("kind", ["cpu", "mps"])
def test_fp16_is_for_cuda_only(kind):
    with pytest.raises(ValueError, match=rf"^train\.precision=fp16 needs a CUDA GPU \(device: {kind}\); use auto"):
        pick_precision("fp16", torch.device(kind))


def test_formats_on_apples_gpu():
    device = torch.device("mps")
    assert pick_precision("auto", device) == pick_precision("fp32", device) == "fp32"
    with pytest.raises(ValueError, match=r"^train\.precision=bf16 is not available on mps, \d+ cores; use auto"):
        pick_precision("bf16", device)


@needs_gpu
def test_formats_on_a_gpu():
    device = torch.device("cuda")
    has_bf16 = torch.cuda.get_device_capability()[0] >= 8
    assert pick_precision("auto", device) == ("bf16" if has_bf16 else "fp16")
    assert pick_precision("fp16", device) == "fp16"


@needs_gpu
def test_a_gpu_in_words():
    words = describe(torch.device("cuda"))
    assert words.startswith(torch.cuda.get_device_name())
    assert words.endswith(" GiB")


def test_a_cpu_in_words():
    assert describe(CPU) == f"cpu, {cpu_cores()} cores"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system cannot give a process fewer cores")
def test_cores_are_those_this_process_may_use():
    code = (
        "import os; from utils.runtime.device import cpu_cores; before = cpu_cores(); "
        "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); print(before, cpu_cores())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == [str(cpu_cores()), "1"], done.stderr
    assert 1 <= cpu_cores() <= len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("groups", "files", "quota"),
    [
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/a/b\n", {"a/cpu.max": "400000 100000", "a/b/cpu.max": "max 100000", "cpu.max": "900000 100000"}, 4.0),
        ("0::/outside/of/here\n", {"cpu.max": "250000 100000"}, 2.5),  # only a part of the path is mounted
        (
            "3:cpu,cpuacct:/\n",
            {"cpu,cpuacct/cpu.cfs_quota_us": "300000", "cpu,cpuacct/cpu.cfs_period_us": "100000"},
            3.0,
        ),
        ("3:cpu:/\n1:memory:/x\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ("nonsense\n0::/\n", {"cpu.max": "what"}, None),
        ("", {}, None),
    ],
)
def test_a_quota_of_cpu_time_is_read_from_the_control_groups(tmp_path: Path, groups, files, quota):
    for name, text in {"proc/self/cgroup": groups, **{f"sys/fs/cgroup/{k}": v for k, v in files.items()}}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cpu_quota(tmp_path) == quota


def test_without_control_groups_there_is_no_quota(tmp_path: Path):
    assert cpu_quota(tmp_path) is None


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not say")
def test_memory_held_at_once_never_falls():
    before = peak_memory(CPU)
    block = torch.ones(50_000_000)  # 200 MB
    assert peak_memory(CPU) >= max(before, block.numel() * 4)
    del block
    assert peak_memory(CPU) >= before


def test_asking_for_cores_imports_no_torch():
    code = "import sys, utils.runtime.device as d; d.cpu_cores(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout == "False\n", done.stderr
