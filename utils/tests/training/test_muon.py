"""The steps Muon takes: orthogonal, equal to a plain one, deaf to what is not finite."""

import copy
import math

import numpy as np
import pytest
import torch

from utils.training import muon
from utils.training.muon import COEFFICIENTS, Muon, orthogonal

SHAPES = ((8, 8), (8, 40), (40, 8), (24, 8), (8, 8), (9, 8))
PARTS = (None, None, None, (0, (8, 12, 4)), (1, (2, 6)), None)


def solve(low: float, steps: int, room: float) -> list[tuple[float, ...]]:
    """The odd polynomials of degree 5 nearest to 1 on [low, high (1 + room)], each for what the last leaves."""
    found, high = [], 1.0
    for _ in range(steps):
        high *= 1 + room
        inner = ((3 * low + high) / 4, (low + 3 * high) / 4)
        for _ in range(100):  # Remez: the error alternates at the ends and where the slope is 0
            points = zip((low, *inner, high), (1, -1, 1, -1), strict=True)
            rows = [(x, x**3, x**5, sign) for x, sign in points]
            a, b, c, _ = np.linalg.solve(np.array(rows), np.ones(4))
            root = math.sqrt(9 * b * b - 20 * a * c)
            inner = (math.sqrt((-3 * b - root) / (10 * c)), math.sqrt((-3 * b + root) / (10 * c)))
        found.append((a, b, c))
        low = a * low + b * low**3 + c * low**5
        high = 2 - low
    return found


def test_the_table_is_the_best_for_its_interval():
    np.testing.assert_allclose(COEFFICIENTS, solve(0.003, 4, room=0.02), atol=2e-6)
    published = (8.28721, -23.59589, 17.30039)  # Amsel et al. 2025: their first, the solution for 0.024 ... 1 scaled up
    a, b, c = solve(0.02407327424182761, 1, room=0.0)[0]
    assert a / b == pytest.approx(published[0] / published[1], rel=1e-4)
    assert c / b == pytest.approx(published[2] / published[1], rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(64, 64), (64, 96), (96, 64), (64, 256), (256, 64)])
def test_all_large_singular_values_become_one(shape: tuple[int, int], dtype: torch.dtype):
    torch.manual_seed(0)
    u, _, v = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    spread = u @ torch.logspace(0, -2.3, 64).diag() @ v  # from 1 to 0.005
    x = torch.stack([torch.randn(shape), spread, u @ v, 1e-6 * spread])
    if dtype == torch.float16:
        x /= torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True)
    got = torch.linalg.svdvals(orthogonal(x.to(dtype)).float()[:3])
    assert got.min() > 0.68
    assert got.max() < 1.26
    exact = orthogonal(x.clone())
    assert exact[3].sub(exact[1]).abs().max() < 1e-4  # the size of a gradient says nothing
    side = (exact[1] * (u @ v)).sum() / 64
    assert side > 0.85  # and the directions are its own


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_matrix_of_low_rank_or_of_zeros_stays_one(dtype: torch.dtype):
    torch.manual_seed(0)
    x = torch.stack([torch.outer(torch.randn(32), torch.randn(48)), torch.zeros(32, 48)])
    x[0] /= x[0].norm()
    values = torch.linalg.svdvals(orthogonal(x.to(dtype)).float())
    assert 0.7 < values[0, 0] < 1.25
    assert values[0, 1:].max() < 0.9
    assert values[1].max() == 0


def weights(seed: int = 0) -> list[torch.nn.Parameter]:
    torch.manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape)) for shape in SHAPES]


def build(params: list[torch.nn.Parameter], **settings) -> Muon:
    vector = torch.nn.Parameter(torch.ones(5))
    groups = [
        {"params": params, "parts": PARTS[: len(params)], "orthogonal": True, "weight_decay": 0.1},
        {"params": [vector], "weight_decay": 0.0},
    ]
    return Muon(groups, 0.02, **{"dtype": torch.float32, **settings})


def set_gradients(optimizer: Muon, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.randn(p.shape, generator=generator)


def everything(optimizer: Muon) -> list[torch.Tensor]:
    """Copies of all weights and states."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    state = [value for p in params for _, value in sorted(optimizer.state[p].items())]
    return [t.detach().clone() for t in (*params, *state)]


def plain_step(p: torch.Tensor, g: torch.Tensor, m: torch.Tensor, parts) -> None:
    """One matrix at a time, every product written out, without any trick."""
    m.mul_(0.95).add_(0.05 * g)
    nesterov = 0.95 * m + 0.05 * g
    sizes, dim = (parts[1], parts[0]) if parts else ((len(p),), 0)
    p.mul_(1 - 0.02 * 0.1)
    for w, u in zip(p.split(sizes, dim), nesterov.split(sizes, dim), strict=True):
        x = u / (u @ u.T @ u @ u.T).trace() ** 0.25
        for a, b, c in COEFFICIENTS:
            x = a * x + b * x @ x.T @ x + c * x @ x.T @ x @ x.T @ x
        w.sub_(0.02 * 0.2 * math.sqrt(max(w.shape)) * x)


def test_equals_a_plain_step():
    optimizer, expected = build(weights()), [p.detach().clone() for p in weights()]
    momenta = [torch.zeros(shape) for shape in SHAPES]
    for step in range(3):
        set_gradients(optimizer, step)
        for p, m, parts, turned in zip(expected, momenta, PARTS, optimizer.param_groups[0]["params"], strict=True):
            plain_step(p, turned.grad, m, parts)
        optimizer.step()
    for p, m, turned in zip(expected, momenta, optimizer.param_groups[0]["params"], strict=True):
        torch.testing.assert_close(turned.detach(), p, atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(optimizer.state[turned]["momentum"], m)
    assert momenta[0].abs().max() > 0


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has Muon from 2.9 on")
def test_equals_torch_where_both_orthogonalise_fully(monkeypatch: pytest.MonkeyPatch):
    exact = (15 / 8, -10 / 8, 3 / 8)  # Newton and Schulz: converges to singular values of 1
    monkeypatch.setattr(muon, "COEFFICIENTS", (exact,) * 20)
    params = weights()[:3]
    theirs = copy.deepcopy(params)
    ours = build(params)
    other = torch.optim.Muon(
        theirs, lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw",
        ns_coefficients=exact, ns_steps=20,
    )  # fmt: skip
    before = [p.detach().clone() for p in params]
    for step in range(3):
        set_gradients(ours, step)
        for p, q in zip(params, theirs, strict=True):
            q.grad = p.grad.clone()
        ours.step()
        other.step()
    for p, q, old in zip(params, theirs, before, strict=True):
        moved = (q - old).norm()
        assert moved > 0.05
        assert (p - q).norm() < 0.02 * moved  # torch's products are in bf16


def test_the_rest_is_adamw():
    optimizer = build(weights(), betas=(0.8, 0.9))
    vector = optimizer.param_groups[1]["params"][0]
    twin = torch.nn.Parameter(vector.detach().clone())
    adamw = torch.optim.AdamW([twin], lr=0.02, betas=(0.8, 0.9), weight_decay=0.0, fused=True)
    for step in range(3):
        set_gradients(optimizer, step)
        twin.grad = vector.grad.clone()
        optimizer.step()
        adamw.step()
    assert torch.equal(vector, twin)


def test_grad_scale_is_clipping_beforehand():
    scaled, clipped = build(weights()), build(weights())
    for step in range(2):
        set_gradients(scaled, step)
        set_gradients(clipped, step)
        for p in (p for group in clipped.param_groups for p in group["params"]):
            p.grad /= 4.0 + 8 * step  # steps weigh differently in the momentum
        scaled.grad_scale = torch.tensor(4.0 + 8 * step)
        scaled.step()
        clipped.step()
    assert all(torch.equal(a, b) for a, b in zip(everything(scaled), everything(clipped), strict=True))


@pytest.mark.parametrize("steps_before", [0, 2])
def test_what_is_not_finite_changes_nothing(steps_before: int):
    optimizer, twin = build(weights()), build(weights())
    for step in range(steps_before):
        for each in (optimizer, twin):
            set_gradients(each, step)
            each.step()
    if not steps_before:  # what it keeps is made by such a step, too
        untouched = weights()
        set_gradients(optimizer, 3)
        optimizer.found_inf = torch.ones(())
        optimizer.step()
        assert all(torch.equal(p, q) for p, q in zip(optimizer.param_groups[0]["params"], untouched, strict=True))
        state = everything(optimizer)[len(SHAPES) + 1 :]
        assert len(state) == len(SHAPES) + 3
        assert not any(value.any() for value in state)
        del optimizer.found_inf
    before = everything(optimizer)
    for waits in (True, False):  # a CPU is asked, a GPU is not: there the arithmetic itself leaves all as it was
        set_gradients(optimizer, 5)
        for group in optimizer.param_groups:
            group["params"][0].grad.view(-1)[::3] = float("nan")
        found = torch.ones(())
        if waits:
            optimizer.found_inf = found
            optimizer.step()
            assert all(torch.equal(a, b) for a, b in zip(everything(optimizer), before, strict=True))
        else:
            with torch.no_grad():
                for stack in optimizer._stacks(optimizer.param_groups[0]):
                    optimizer._orthogonal_step(*stack, optimizer.param_groups[0], None, found)
                optimizer._adamw_step(optimizer.param_groups[1], None, found)
    for each in (optimizer, twin):
        each.found_inf = torch.zeros(())
        set_gradients(each, 7)
        each.step()
    assert all(torch.equal(a, b) for a, b in zip(everything(optimizer), everything(twin), strict=True))


def test_memory_that_runs_out_does_so_before_anything_is_changed(monkeypatch: pytest.MonkeyPatch):
    class Narrow(muon.Room):
        made = 0

        def __init__(self, *args) -> None:
            Narrow.made += 1
            if Narrow.made == 3:
                raise MemoryError
            super().__init__(*args)

    monkeypatch.setattr(muon, "Room", Narrow)
    optimizer = build(weights())
    set_gradients(optimizer, 0)
    with pytest.raises(MemoryError):
        optimizer.step()
    for p, q in zip(optimizer.param_groups[0]["params"], weights(), strict=True):
        assert torch.equal(p, q)
        assert not optimizer.state[p]["momentum"].any()


def test_in_fp16_the_smallest_gradients_still_point_somewhere():
    tiny, plain = build(weights(), dtype=torch.float16), build(weights(), dtype=torch.float16)
    for optimizer, size in ((tiny, 2.0**-40), (plain, 1.0)):
        set_gradients(optimizer, 0)
        for p in optimizer.param_groups[0]["params"]:
            p.grad *= size
        optimizer.step()
    for p, q in zip(tiny.param_groups[0]["params"], plain.param_groups[0]["params"], strict=True):
        torch.testing.assert_close(p, q, atol=1e-4, rtol=0.0)


@pytest.mark.parametrize("unscaled", [True, False])
def test_a_scaler_leaves_an_overflow_out(unscaled: bool):
    optimizer, scaler = build(weights()), torch.amp.GradScaler("cpu", init_scale=4.0)
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for factor, moves in ((float("inf"), False), (1.0, True)):
        before = everything(optimizer)
        scaler.scale(sum((factor * p).sum() for p in params)).backward()
        if unscaled:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        assert torch.equal(params[0], before[0]) != moves


def test_equal_input_gives_equal_bits():
    runs = []
    for _ in range(2):
        optimizer = build(weights(), dtype=None)
        for step in range(3):
            set_gradients(optimizer, step)
            optimizer.step()
        runs.append(everything(optimizer))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_only_matrices_can_be_orthogonalised():
    with pytest.raises(ValueError, match=r"only matrices.*\(3,\)"):
        Muon([{"params": [torch.nn.Parameter(torch.ones(3))], "orthogonal": True}], 0.1)
