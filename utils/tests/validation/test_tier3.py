"""Tier 3 with small budgets: a sound model passes, a leak falls below the floor, a frozen one learns nothing."""

import json
import math
import time

import pytest
import torch
from torch import nn

from utils.config.schema import ModelShape, TrainConfig
from utils.data.storing.token_store import open_store
from utils.models.registry import KINDS, build_model
from utils.validation import short_training, tier3
from utils.validation.baselines import equal_shape
from utils.validation.rate_test import range_test
from utils.validation.short_training import (
    Budget,
    CannotTell,
    Lesson,
    count_parameters,
    line,
    tier3_data,
    train,
    validation_loss,
)
from utils.validation.subject import Subject
from utils.validation.tier3 import CHECKS

V, BLOCK = 64, 64
PLENTY = 1000.0  # seconds: steps decide, so a busy machine changes nothing
SHAPE = ModelShape(n_layer=2, n_head=2, n_embd=32, block_size=BLOCK, vocab_size=V)


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def small_steps(monkeypatch):
    """A quarter of the usual batch, where only the way there is tested."""
    monkeypatch.setattr(short_training, "STEP_TOKENS", 512)


class Leaking(KINDS["llama"]):
    """Attention without a causal mask."""

    def forward(self, input_ids, cache=None):
        T = input_ids.shape[1]
        x, first = self.token_embedding(input_ids), None
        for block in self.blocks:
            x, first = block(x, (self.cos[:T], self.sin[:T]), torch.ones(T, T, dtype=torch.bool), None, first)
        return self.head(self.norm(x))


class Encoder(nn.Module):
    """Sees both sides; tokens in, `outputs` scores per token or per text out."""

    def __init__(self, outputs=V, pooled=False):
        super().__init__()
        self.tok, self.mix = nn.Embedding(V, 32), nn.GRU(32, 16, batch_first=True, bidirectional=True)
        self.head, self.pooled, self.aux_loss = nn.Linear(32, outputs), pooled, None

    def forward(self, ids):
        x = self.mix(self.tok(ids))[0]
        self.aux_loss = 1e-3 * x.square().mean()
        return self.head(x.mean(1) if self.pooled else x)


class Seq2Seq(nn.Module):
    def __init__(self):
        super().__init__()
        self.tok, self.head = nn.Embedding(V, 32), nn.Linear(32, V)
        self.read, self.write = (nn.GRU(32, 32, batch_first=True) for _ in range(2))

    def forward(self, source, target):
        return self.head(self.write(self.tok(target), self.read(self.tok(source))[1])[0])


def subject_of(kind="llama", task="causal", **budget):
    torch.manual_seed(0)
    model = kind if isinstance(kind, nn.Module) else build_model(kind, SHAPE)
    subject = Subject(model, V, BLOCK, task == "causal", 0, task)
    seconds = dict.fromkeys(("overfit", "stories", "rates", "baselines", "settings"), PLENTY)
    subject.budget = Budget(**seconds | budget)
    return subject


def untouched(subject):
    return all(torch.equal(a, b) for a, b in zip(subject.original.state_dict().values(),
                                                 subject.model.state_dict().values(), strict=True))  # fmt: skip


def test_the_data_fit_the_vocabulary():
    kinds = {vocab: tier3_data(vocab, 32).tokenizer for vocab in (58, 255, 256, 1023, 1024, 50257)}
    assert list(kinds.values()) == ["char", "char", "byte", "byte", "bpe", "bpe"]
    assert (tier3_data(64, 32).seq_len, tier3_data(64, 9999).seq_len, tier3_data(64, 1).seq_len) == (32, 256, 1)
    folder = open_store(tier3_data(64, 32)).folder
    assert folder == open_store(tier3_data(64, 1024)).folder  # prepared once, whatever the block


def test_a_vocabulary_that_is_too_small_is_skipped_in_words():
    subject = Subject(build_model("gpt", SHAPE.model_copy(update={"vocab_size": 16})), 16, BLOCK, True, 0)
    for check in CHECKS.values():
        result = check(subject)
        assert result.status == "skip"
        assert "need 58 tokens even as characters, and the model has 16" in result.measured


def test_the_checks_write_nothing_into_a_cache_that_is_prepared(monkeypatch, small_steps):
    folder = open_store(tier3_data(V, BLOCK)).folder
    monkeypatch.setattr("utils.data.storing.token_store.build", lambda *_: pytest.fail("wrote the store again"))
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert CHECKS["stories"](subject_of(steps=2)).values["steps"] == 2
    assert before == {path: path.stat().st_mtime_ns for path in folder.iterdir()}


@pytest.mark.parametrize("kind", ["gpt", "llama"])
def test_a_sound_model_passes_and_is_put_back(kind, small_steps):
    subject = subject_of(kind, steps=40)
    for name in ("overfit", "stories"):
        check = CHECKS[name](subject)
        assert check.status == "pass", check
        assert check.why
        json.dumps(check.figure, allow_nan=False)
        assert untouched(subject)
        assert all(param.grad is None for param in subject.model.parameters())
    assert check.values["floor"] < check.values["loss"] < check.values["ignorance"]
    assert check.figure["floor"] == check.values["floor"]


def test_a_model_without_a_causal_mask_falls_below_the_floor():
    subject = subject_of(Leaking(SHAPE.model_copy(update={"n_head": 1})), steps=110)
    subject.suggested_rate = 1e-2
    check = CHECKS["stories"](subject)
    assert check.status == "fail"
    assert "below the floor of" in check.measured
    assert "the least possible" in check.measured
    assert "Is attention causal" in check.advice
    assert check.values["loss"] < check.values["floor"] - 20 / check.values["guesses"]
    assert check.values["gap"] < 0


def test_what_cannot_learn_fails_the_first_question(monkeypatch):
    monkeypatch.setattr(tier3, "ROUNDS", 40)
    frozen = build_model("gpt", SHAPE).requires_grad_(False)
    checks = {name: check(subject_of(frozen)) for name, check in CHECKS.items()}
    assert {name: check.status for name, check in checks.items()} == dict.fromkeys(CHECKS, "skip") | {"overfit": "fail"}
    assert "no parameter is trainable" in checks["overfit"].measured
    stiff = build_model("gpt", SHAPE)
    for name, param in stiff.named_parameters():
        param.requires_grad_(name == "blocks.0.mlp.up.bias")
    check = CHECKS["overfit"](subject_of(stiff))
    assert check.status == "fail"
    assert "by heart" in check.advice


def test_dropout_does_not_hide_that_a_batch_can_be_learned():
    model = Encoder()
    model.head = nn.Sequential(nn.Dropout(0.7), model.head)
    subject = subject_of(model, "masked")
    assert CHECKS["overfit"](subject).status == "pass"
    assert subject.model.head[0].p == 0.7


def test_the_suggested_rate_lies_where_the_loss_falls_and_divergence_is_seen(small_steps):
    subject = subject_of()
    check = CHECKS["learning rate"](subject)
    assert check.status == "pass", check
    assert 1e-3 <= check.values["suggestion"] <= 3e-2
    assert check.values["suggestion"] < check.values["diverged_at"] <= 10
    assert check.figure["log_x"]
    assert subject.suggested_rate == check.values["suggestion"]
    assert untouched(subject)


def test_a_range_test_of_a_model_that_breaks_early_says_where(small_steps):
    class Breaks(nn.Module):
        def __init__(self):
            super().__init__()
            self.tok, self.head = nn.Embedding(V, 16), nn.Linear(16, V)

        def forward(self, ids):
            far = (self.head.weight.abs().max() > 1.0).float()
            return self.head(self.tok(ids)) / (1 - far)  # infinite once a weight has gone far

    subject = subject_of(Breaks())
    found = range_test(subject.model, Lesson(subject, PLENTY), steps=50)
    assert found.diverged_at < 1.0
    assert all(math.isfinite(loss) for loss in found.smoothed)
    assert len(found.rates) == len(found.losses) == len(found.smoothed) < 50


@pytest.mark.parametrize("parameters", [8_000, 30_000, 1_000_000, 124_000_000])
@pytest.mark.parametrize("kind", ["gpt", "llama"])
def test_equal_models_are_equal(kind, parameters):
    vocab, layers = (50257, 12) if parameters > 1e8 else (64, 4)
    shape = equal_shape(kind, parameters, vocab, 64, layers)
    with torch.device("meta"):
        assert abs(count_parameters(build_model(kind, shape)) / parameters - 1) < 0.1


def test_no_model_is_as_small_as_nothing():
    assert equal_shape("gpt", 500, 64, 64, 2) is None


def test_baselines_run_the_same_lesson(small_steps):
    subject = subject_of("llama", steps=25)
    check = CHECKS["baselines"](subject)
    values = check.values
    assert values["steps"] == {"yours": 25, "llama": 25, "gpt": 25}
    assert max(values["parameters"].values()) < 1.1 * min(values["parameters"].values())
    assert [series["name"] for series in check.figure["series"]] == ["yours", "llama", "gpt"]
    assert values["loss"]["yours"] == pytest.approx(values["loss"]["llama"], abs=0.3)  # the same kind of model
    assert check.status == "pass"
    assert untouched(subject)


def test_a_poor_model_is_told_that_a_plain_one_learns_more(small_steps):
    class Forgets(nn.Module):
        def __init__(self):
            super().__init__()
            self.bias, self.unused = nn.Parameter(torch.zeros(V)), nn.Parameter(torch.zeros(30_000))

        def forward(self, ids):
            return self.bias.expand(*ids.shape, V) + 0 * self.unused.sum()

    subject = subject_of(Forgets(), steps=25)
    subject.suggested_rate = 1e-2
    check = CHECKS["baselines"](subject)
    assert check.status == "warn"
    assert "learns less from each step than llama" in check.advice
    assert CHECKS["stories"](subject).status == "warn"


def test_settings_are_probed_by_halving(small_steps):
    subject = subject_of(steps=10)
    subject.suggested_rate = 3e-3
    values = CHECKS["settings"](subject).values
    first, second = values["rounds"]
    assert (len(first), len(second)) == (6, 3)
    assert sorted({row["learning_rate"] for row in first}) == pytest.approx([9e-4, 3e-3, 9e-3])
    assert max(row["loss"] for row in second) < max(row["loss"] for row in first)
    best = min(second, key=lambda row: row["loss"])
    assert (values["learning_rate"], values["weight_decay"]) == (best["learning_rate"], best["weight_decay"])
    assert untouched(subject)


@pytest.mark.parametrize(
    ("task", "model"),
    [("masked", Encoder), ("seq2seq", Seq2Seq), ("classification", lambda: Encoder(3, pooled=True))],
)
def test_every_task_is_asked_in_its_own_way(task, model, small_steps):
    subject = subject_of(model(), task, steps=25)
    lesson = Lesson(subject, PLENTY)
    inputs, labels = lesson.train(0)
    assert len(inputs) == (2 if task == "seq2seq" else 1)
    if task == "masked":
        hidden = labels >= 0
        assert hidden.float().mean() == pytest.approx(0.15, abs=0.05)
        assert (inputs[0][hidden] == lesson.mask_id).all()
        assert lesson.mask_id not in lesson.store.train[:]
    elif task == "seq2seq":
        assert (inputs[1][:, 1:] == labels[:, :-1]).all()
    else:
        assert set(labels.tolist()) == {0, 1, 2}
    assert CHECKS["overfit"](subject).status == "pass"
    stories = CHECKS["stories"](subject)
    assert stories.status in ("pass", "warn")
    assert stories.values["floor"] is None
    assert "floor" not in stories.figure
    assert "are causal" in CHECKS["baselines"](subject).measured
    assert untouched(subject)


def test_the_same_steps_give_the_same_numbers(small_steps):
    one, two = (CHECKS["stories"](subject_of(steps=8)).values for _ in range(2))
    assert {k: v for k, v in one.items() if k != "tokens_per_second"} == {
        k: v for k, v in two.items() if k != "tokens_per_second"
    }


def test_the_whole_validation_text_is_read(small_steps):
    lesson = Lesson(subject := subject_of(), PLENTY)
    assert validation_loss(subject.model, lesson)[1] == len(lesson.store.val) - 1


def test_an_auxiliary_loss_is_trained_but_not_reported(small_steps):
    model = Encoder()
    subject = subject_of(model, "masked")
    lesson = Lesson(subject, PLENTY)
    subject.model.train()
    loss = short_training.gradient(subject.model, lesson.train(0))
    with_aux = subject.model.head.weight.grad.clone(), subject.model.tok.weight.grad.clone()
    subject.reset()
    inputs, labels = lesson.train(0)
    plain = nn.functional.cross_entropy(subject.model(*inputs).flatten(0, 1), labels.flatten(), ignore_index=-100)
    plain.backward()
    assert loss == pytest.approx(plain.item())
    assert torch.allclose(with_aux[0], subject.model.head.weight.grad)  # behind it
    assert not torch.allclose(with_aux[1], subject.model.tok.weight.grad, atol=1e-9)


def test_a_model_too_slow_for_its_time_is_skipped():
    check = CHECKS["stories"](subject_of(stories=1e-6))
    assert check.status == "skip"
    assert "one step on a single text takes" in check.measured
    with pytest.raises(CannotTell, match="30 steps of .* do not fit into"):
        range_test(nn.Linear(1, 1), type("Slow", (), {"step_seconds": 10.0})(), seconds=20.0)


def test_what_was_cut_off_by_a_busy_machine_is_no_verdict(small_steps, monkeypatch):
    """A range test that ended early has only seen small rates; a few steps of warm-up compare nothing."""
    subject = subject_of(rates=0.5, baselines=0.5)
    monkeypatch.setattr(Lesson, "_time", lambda self, subject, batch_size: 1e-4)  # so it seemed, then it was busy
    slow = type(subject.model).forward

    def forward(self, ids):
        time.sleep(0.05)
        return slow(self, ids)

    monkeypatch.setattr(type(subject.model), "forward", forward)
    check = CHECKS["learning rate"](subject)
    assert check.status == "skip"
    assert "time was up at rate" in check.measured
    assert not hasattr(subject, "suggested_rate")
    check = CHECKS["baselines"](subject)
    assert check.status == "skip"
    assert "too few steps to compare" in check.measured


def test_evaluation_is_taken_from_the_time(small_steps):
    lesson = Lesson(subject_of(), PLENTY)
    lesson.step_seconds = 1.0
    assert lesson.evaluation_seconds == pytest.approx(0.5 * len(lesson.store.val) / 512)
    assert 85 < lesson.training_seconds(100.0) < 95
    with pytest.raises(CannotTell, match=r"takes about 9.9 s of the 12.0 s"):
        lesson.training_seconds(12.0)


def test_time_ends_a_training(small_steps):
    subject = subject_of()
    course = train(subject.model, Lesson(subject, PLENTY), TrainConfig(), seconds=0.3, steps=10_000)
    assert 1 <= course.steps < 10_000
    assert course.clock == sorted(course.clock)


def test_a_training_that_breaks_is_a_failure(small_steps):
    subject = subject_of(steps=40)
    with torch.no_grad():
        subject.model.head.weight[0, 0] = float("nan")
    subject.contents = [(t, t.clone()) for t, _ in subject.contents]
    check = CHECKS["stories"](subject)
    assert check.status == "fail"
    assert "not finite" in check.measured
    json.dumps(check.figure, allow_nan=False)


def test_a_curve_is_thinned_and_keeps_its_end():
    drawn = line("loss", list(range(1000)), [float("nan"), *map(float, range(999))])
    assert len(drawn["x"]) <= short_training.POINTS + 1
    assert (drawn["x"][-1], drawn["y"][-1]) == (999.0, 998.0)


def test_default_budget_is_about_three_minutes():
    budget = Budget()
    assert 150 <= budget.overfit + budget.stories + budget.rates + budget.baselines + budget.settings <= 200
    assert list(CHECKS) == ["overfit", "learning rate", "stories", "baselines", "settings"]
    assert tier3.tier3_data is tier3_data
