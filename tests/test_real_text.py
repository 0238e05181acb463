"""Real text, as in the README's second thing to do: English letters come out."""

from pathlib import Path


def test_shakespeare_trains_and_speaks(tbt, tmp_path: Path, shakespeare: Path):
    words = (
        "data.source=text", f"data.path={shakespeare}", "data.tokenizer=char", "data.seq_len=64", "train.max_steps=80",
        "train.eval_batches=4", "train.sample_every=0", "train.threads=1", "model.shape.n_layer=2",
    )  # fmt: skip
    got = tbt("train", "--preset", "quickstart", *words, "--run-dir", "runs/bard")
    assert got.returncode == 0, got.stderr
    assert "best possible" not in got.stdout  # nobody knows the entropy of Shakespeare
    text = tbt("generate", "runs/bard", "--prompt", "ROMEO:", "--max-new-tokens", 200).stdout
    assert text.startswith("ROMEO:")
    assert sum(text.count(letter) for letter in "etaoin ") > 60
    refused = tbt("generate", "runs/bard", "--prompt", "naïve €")
    assert refused.returncode == 2
    assert "characters that the model has never seen: 'ï€'" in refused.stderr
