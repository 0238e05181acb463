"""train.batch_size=auto: foretold from small rehearsals, and found once per run."""

from pathlib import Path

import numpy as np
import pytest
import torch

from utils.config.load import load_config
from utils.config.schema import TrainConfig
from utils.data.batching.batches import TrainBatches
from utils.data.batching.tasks import TaskBatches, build_batches
from utils.data.storing.token_store import open_store
from utils.models.load import load_model
from utils.runs.folder import RunFolder
from utils.tests.tiny import metrics_of, tiny_config, weights_hash
from utils.training import batch_size as module
from utils.training.batch_size import Growth, _allocations, fitting_batch_size, growth, longest
from utils.training.run import run_training
from utils.training.step import Stepper

CPU = torch.device("cpu")


def tiny_model(**shape):
    words = [f"model.shape.{name}={value}" for name, value in shape.items()]
    return load_model(tiny_config(Path("unused"), *words).model, 300, 0)


def batches(n: int = 20_000) -> TaskBatches:
    return TaskBatches(TrainBatches(np.arange(n) % 300, 16, 1, 0))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("rows", [16, 64])
def test_what_is_foretold_is_what_is_taken(precision: str, rows: int):
    train = batches()
    stepper = Stepper(tiny_model(n_layer=2), TrainConfig(batch_size=0), train, CPU, precision, ahead=False)
    stepper.working.train()
    foretold = growth(stepper, train).peak(rows)
    taken = int(np.cumsum(_allocations(stepper, longest(train, rows))).max())
    assert foretold == pytest.approx(taken, rel=0.1)


def test_the_largest_that_fits(monkeypatch):
    free = 50_000_000
    monkeypatch.setattr(module, "free_bytes", lambda: free)
    model, train = tiny_model(n_layer=2), batches()
    size, words = fitting_batch_size(model, TrainConfig(batch_size=0), train, CPU, "fp32")
    assert 1 < size < 1024
    assert f"train.batch_size=auto is {size}: it needs" in words
    assert f"of the 0.05 GB free; {2 * size} would be too many" in words
    stepper = Stepper(model, TrainConfig(batch_size=0), train, CPU, "fp32", ahead=False)
    stepper.working.train()
    peaks = []
    for rows in (size, 2 * size):
        stepper.rehearse(longest(train, rows))
        peaks.append(np.cumsum(_allocations(stepper, longest(train, rows))).max())
    assert peaks[0] < module.SHARE * free < peaks[1] * 1.1
    monkeypatch.setattr(module, "free_bytes", lambda: 1000)
    assert fitting_batch_size(model, TrainConfig(batch_size=0), train, CPU, "fp32").batch_size == 1


def test_there_is_room_for_the_average(monkeypatch):
    model, train, config = tiny_model(n_layer=2), batches(), TrainConfig(batch_size=0, stats_every=0)
    weights = sum(p.numel() for p in model.parameters())
    stepper = Stepper(model, config, train, CPU, "fp32", ahead=False)
    stepper.working.train()
    peak = growth(stepper, train).peak(64)
    stepper.forget()
    # As much as 64 examples take, optimizer state, gradients, and half an average.
    monkeypatch.setattr(module, "free_bytes", lambda: (peak + (module.STATE + 6) * weights) / module.SHARE)
    averaged = config.model_copy(update={"ema_decay": 0.9})
    found = [fitting_batch_size(model, each, train, CPU, "fp32").batch_size for each in (config, averaged)]
    assert found == [64, 32]


def test_no_more_than_there_are():
    found = fitting_batch_size(tiny_model(), TrainConfig(batch_size=0), batches(16 * 12), CPU, "fp32")
    assert found.batch_size == 8  # of 11 examples
    assert "as many as there are" in found.words


class Counting(torch.nn.Module):
    """A model from elsewhere that keeps count of its calls and means of what it has seen."""

    task = "causal"

    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm = torch.nn.Embedding(300, 8), torch.nn.BatchNorm1d(8)
        self.head = torch.nn.Linear(8, 300)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("places", torch.zeros(1), persistent=False)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if len(self.places) < input_ids.shape[1]:  # tables that are made, or grow, when they are needed
            self.register_buffer("places", torch.zeros(input_ids.shape[1]), persistent=False)
            self.register_buffer("scales", torch.ones(8), persistent=False)
        return self.head(self.norm(self.table(input_ids).mT).mT)


def test_nothing_of_the_model_is_changed():
    model = Counting().eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fitting_batch_size(model, TrainConfig(batch_size=0), batches(), CPU, "fp32")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert not model.training


def test_uneven_rehearsals_are_taken_for_more_than_they_are():
    assert Growth(np.array([100.0, 300.0]), np.array([50.0, 2.0])).peak(2) == 304
    assert Growth(np.array([100.0, 300.0]), np.array([50.0, 2.0])).peak(100) == 5100


def test_the_longest_document_is_rehearsed(tmp_path: Path):
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(f'{{"text": "{"word " * n}"}}\n' for n in (1, 30, 3, 2) * 20))
    config = load_config("debug", overrides=["data.source=jsonl", f"data.path={texts}", "data.packing=documents",
                                             "data.seq_len=64", "data.tokenizer=byte"])  # fmt: skip
    store = open_store(config.data)
    train, _ = build_batches(
        store, config.data, 1, 1, 0, "causal", packs_documents=False, supports_attention_mask=False
    )
    assert longest(train, 3).labels.shape == (3, 64)


def test_a_run_finds_it_once_and_keeps_it(tmp_path: Path, monkeypatch):
    config = tiny_config(tmp_path / "auto", "train.batch_size=auto", "data.size=3000", "train.save_every=2")
    assert config.train.batch_size == 0
    with monkeypatch.context() as patch:
        patch.setattr(module, "MOST", 8)
        run = RunFolder(tmp_path / "auto")
        run_training(config, lambda: 2 if any(row["step"] >= 3 for row in run.metrics()) else None)
    assert run.read_json("meta")["made_with"]["batch_size"] == 8
    (note,) = run.events("note")
    assert "train.batch_size=auto is 8" in note["text"]
    assert run_training(config).status == "completed"  # where more would fit by now
    assert run.events("resumed")[0]["level"] == "exact"
    assert len(run.events("note")) == 1
    run_training(tiny_config(tmp_path / "said", "train.batch_size=8", "data.size=3000", "train.save_every=2"))
    assert weights_hash(tmp_path / "auto") == weights_hash(tmp_path / "said")
    assert metrics_of(tmp_path / "auto") == metrics_of(tmp_path / "said")
