"""BDH: every fast form equals the equations, and a state stands in for the text it has read."""

import gc
import math

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from utils.config.schema import ModelShape
from utils.models import bdh
from utils.models.bdh import BDH, gather, gather_few, rotary_phases
from utils.models.bdh_view import activations
from utils.models.registry import build_model
from utils.tests.models.bdh_oracle import oracle_logits

SHAPE = ModelShape(n_layer=3, n_head=2, n_embd=16, n_hidden=64, block_size=8, vocab_size=50)
PUBLISHED = ModelShape(n_layer=6, n_head=4, n_embd=256, vocab_size=256, dropout=0.1)
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}
EACH_DTYPE = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)


def lively(dtype: torch.dtype = torch.float64, chunk: int = 0, **change: object) -> BDH:
    """A model with large weights, whose logits differ; `chunk` tokens at a time (0: as it is built)."""
    torch.manual_seed(0)
    model = build_model("bdh", SHAPE.model_copy(update=change))
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(10)
    model.chunk = chunk or model.chunk
    return model.to(dtype).eval()


def some_ids(batch: int, length: int) -> Tensor:
    return torch.randint(50, (batch, length), generator=torch.Generator().manual_seed(1))


def close(found: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    torch.testing.assert_close(found.double(), expected.double(), rtol=0, atol=TOLERANCE[dtype])


@EACH_DTYPE
def test_forward_equals_the_equations(dtype: torch.dtype) -> None:
    model, ids = lively(dtype), some_ids(2, 13)
    expected = oracle_logits(model.state_dict(), 3, ids)
    assert expected.std() > 0.1
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            close(model(ids), expected, dtype)


@EACH_DTYPE
@pytest.mark.parametrize("chunk", [3, 7, 20, 39])
def test_chunks_equal_the_whole(dtype: torch.dtype, chunk: int) -> None:
    ids = some_ids(2, 40)
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            close(lively(dtype, chunk)(ids), lively(dtype)(ids), dtype)


@EACH_DTYPE
@pytest.mark.parametrize("pieces", [[1] * 45, [37, 1, 1, 5, 1], [2, 40, 3]], ids=str)
@pytest.mark.parametrize("batch", [1, 3])
def test_recurrent_equals_parallel(dtype: torch.dtype, pieces: list[int], batch: int) -> None:
    model, ids = lively(dtype, chunk=16), some_ids(batch, 45)
    cache = model.new_cache(batch)
    with torch.no_grad():
        whole = lively(dtype)(ids)
        for _ in range(2):  # a state that was reset is as good as new
            close(torch.cat([model(part, cache) for part in ids.split(pieces, dim=1)], dim=1), whole, dtype)
            assert cache.length == 45
            cache.reset()
            assert cache.length == 0


@EACH_DTYPE
def test_rows_of_active_neurons_are_enough(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = lively(dtype), some_ids(1, 30)
    calls = []
    monkeypatch.setattr(bdh, "gather_few", lambda *args: calls.append(1) or gather_few(*args))

    def in_steps(share: float) -> Tensor:
        monkeypatch.setattr(bdh, "FEW", share)
        cache = model.new_cache()
        return torch.cat([model(part, cache) for part in ids.split([9] + [1] * 21, dim=1)], dim=1)

    with torch.no_grad():
        dense = in_steps(0.0)
        assert not calls
        close(in_steps(1.1), dense, dtype)
        assert len(calls) == 3 * 21
        close(dense, model(ids), dtype)


def test_the_state_does_not_grow() -> None:
    model = lively()
    cache = model.new_cache(2)
    sizes = []
    with torch.no_grad():
        for length in (1, 30, 300):
            model(some_ids(2, length), cache)
            sizes.append([tuple(each.shape) for each in cache.sums])
    assert sizes == [[(2, 2, 32, 16)] * 3] * 3  # heads, batch, neurons per head, channels


def test_gradients_of_chunks_equal_those_of_the_whole() -> None:
    ids = some_ids(2, 41)
    gradients = []
    for chunk in (0, 9):
        model = lively(chunk=chunk).train()
        model(ids).logsumexp(-1).square().mean().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, expected in gradients[0].items():
        assert expected.abs().max() > 1e-6, name
        close(gradients[1][name], expected, torch.float64)


def test_gradients_go_through_a_cache() -> None:
    model, ids = lively(), some_ids(1, 12)
    model(ids).square().mean().backward()
    expected = model.encoder.grad.clone()
    model.zero_grad()
    cache = model.new_cache()
    torch.cat([model(part, cache) for part in ids.split(5, dim=1)], dim=1).square().mean().backward()
    close(model.encoder.grad, expected, torch.float64)


def bytes_kept(length: int) -> int:
    """Memory of everything that is held between the forward and the backward pass of a training step."""
    gc.collect()
    model, storages = lively(torch.float32, chunk=16).train(), {}

    def note(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    before = [each for each in gc.get_objects() if type(each) is Tensor]
    with saved_tensors_hooks(note, lambda tensor: tensor):
        logits = model(some_ids(1, length))
    old = {id(each) for each in before}
    for each in gc.get_objects():  # what a checkpointed layer starts from is held by Python
        if type(each) is Tensor and id(each) not in old:
            note(each)
    assert logits.requires_grad
    return sum(storages.values())


def test_training_memory_grows_with_the_length_not_its_square() -> None:
    short, long = bytes_kept(64), bytes_kept(256)
    assert 3 < long / short < 4.5
    states = 3 * 16 * (2 * 32 * 16 * 4)  # layers x chunks x a state in bytes
    assert states < long < 4 * states  # eight times, if the layers' own results were kept, too


def test_a_later_token_does_not_change_earlier_logits() -> None:
    model, ids = lively(chunk=8), some_ids(2, 30)
    changed = ids.clone()
    changed[:, 19] = (changed[:, 19] + 1) % 50
    with torch.no_grad():
        before, after = model(ids), model(changed)
    assert torch.equal(before[:, :19], after[:, :19])
    assert (before[:, 19:] - after[:, 19:]).abs().amax(dim=-1).min() > 1e-6


def test_a_token_gathers_nothing_from_itself() -> None:
    q, x = torch.rand(1, 1, 3, 4), torch.rand(1, 3, 2)
    a, _ = gather(q, x, None, first=True)
    assert torch.equal(a[0, 0, 0], torch.zeros(2))
    torch.testing.assert_close(a[0, 0, 1], (q[0, 0, 1] @ q[0, 0, 0]) * x[0, 0])


def test_phases_are_fp32_and_do_not_depend_on_where_a_piece_begins() -> None:
    whole = rotary_phases(32, 0, 70_000, torch.device("cpu"))
    assert whole.dtype == torch.float32
    assert torch.equal(whole[69_990:], rotary_phases(32, 69_990, 10, torch.device("cpu")))
    assert whole[7, 3].item() == pytest.approx(7 * 65536 ** (-6 / 32) % (2 * math.pi), rel=1e-5)
    assert lively(torch.bfloat16).rotation(0, 3)[0].dtype == torch.float32


def test_published_state_dicts_load() -> None:
    H, D, N, V = 4, 256, 8192, 256
    shapes = {"embed.weight": (V, D), "encoder": (H, D, N), "encoder_v": (H, D, N), "decoder": (H * N, D),
              "lm_head": (D, V)}  # fmt: skip
    with torch.device("meta"):
        model = build_model("bdh", PUBLISHED)
    assert {name: tuple(p.shape) for name, p in model.state_dict().items()} == shapes
    assert sum(p.numel() for p in model.parameters()) == 25_296_896

    small = lively(torch.float32)
    published = {name: torch.rand_like(p) for name, p in small.state_dict().items()}
    small.load_state_dict({**published, "attn.freqs": torch.zeros(1, 1, 1, 32)}, strict=True)
    assert all(torch.equal(p, published[name]) for name, p in small.state_dict().items())
    with pytest.raises(RuntimeError, match="attn.other"):
        small.load_state_dict({**published, "attn.other": torch.zeros(1)}, strict=True)


def test_initial_weights() -> None:
    torch.manual_seed(0)
    for name, p in build_model("bdh", ModelShape(n_layer=1, n_embd=64, vocab_size=200)).named_parameters():
        assert p.std().item() == pytest.approx(0.02, rel=0.05), name
        assert abs(p.mean().item()) < 0.001, name


@pytest.mark.parametrize("chunk", [0, 5])
def test_dropout_acts_in_training_only(chunk: int) -> None:
    model, ids = lively(chunk=chunk, dropout=0.3).train(), some_ids(2, 12)
    assert not torch.equal(model(ids), model(ids))
    model.eval()
    assert torch.equal(model(ids), model(ids))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("chunk", [0, 6])
def test_half_precision_runs_near_full_precision(dtype: torch.dtype, chunk: int) -> None:
    torch.manual_seed(0)
    model, ids = build_model("bdh", SHAPE).eval(), some_ids(2, 16)
    model.chunk = chunk or model.chunk
    with torch.no_grad():
        exact = model(ids)
        with torch.autocast("cpu", dtype=dtype):
            torch.testing.assert_close(model(ids).float(), exact, rtol=0.05, atol=0.02)
    with torch.autocast("cpu", dtype=dtype):  # training
        torch.testing.assert_close(model(ids).float(), exact, rtol=0.05, atol=0.02)
    with torch.no_grad():
        half = model.to(dtype)
        cache = half.new_cache(2)
        found = torch.cat([half(part, cache) for part in ids.split([11, 1, 4], dim=1)], dim=1)
    assert (found.dtype, cache.sums[0].dtype) == (dtype, torch.float32)
    torch.testing.assert_close(found.float(), exact, rtol=0.05, atol=0.02)


def test_the_view_counts_what_the_equations_say() -> None:
    model, ids = lively(dropout=0.5), some_ids(1, 9)[0]
    found = activations(model, ids, top=5)
    assert [each.layer for each in found] == [0, 1, 2]
    x = torch.nn.functional.layer_norm(model.embed.weight[ids], (16,))
    u = torch.relu(x @ model.encoder)  # (H, T, N)
    assert found[0].share_u == pytest.approx((u > 0).double().mean().item())
    for each in found:
        assert 0 < each.share_both <= min(each.share_u, each.share_y) < 1
        assert [len(row) for row in each.neurons] == [len(row) for row in each.values] == [5] * 9
        assert all(row == sorted(row, reverse=True) for row in each.values)
        assert all(0 <= n < 64 for row in each.neurons for n in row)
        assert each.values[0] == [0.0] * 5  # the first token has gathered nothing yet
    row, value = found[0].neurons[3][0], found[0].values[3][0]
    assert value > 0
    assert u[row // 32, 3, row % 32] > 0
    assert activations(model.train(), ids.tolist(), top=5) == found  # no dropout, and the mode stays
    assert model.training
    for wrong in ([], some_ids(2, 4)):
        with pytest.raises(ValueError, match="token ids of one text"):
            activations(model, wrong)
