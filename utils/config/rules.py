"""Settings that are each allowed but do not fit together: the rules, each with the keys it is about and what to do."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from utils.config.schema import DataConfig, RunConfig

BUILT_IN = ("gpt", "llama", "bdh")  # the kinds of model this package writes itself
Problem = tuple[tuple[str, ...], str]  # the dotted keys involved, what is wrong and what to do


def disagreements(config: "RunConfig") -> list[Problem]:
    """Settings that are each allowed but do not fit together."""
    m, d, t, kind = config.model.shape, config.data, config.train, config.model.kind
    own = kind in BUILT_IN  # a model from elsewhere has its own shape
    neurons = m.n_hidden or 128 * m.n_embd
    rules: list[tuple[bool, tuple[str, ...], str]] = [
        (own or bool(config.model.ref), ("model.kind", "model.ref"), f"model.kind={kind} needs model.ref=WHERE_IT_IS"),
        (
            not own or not config.model.ref,
            ("model.kind", "model.ref"),
            f"model.ref={config.model.ref} is only read with model.kind=builder, hub or folder (given: {kind})",
        ),
        (
            not own or d.task in ("auto", "causal"),
            ("model.kind", "data.task"),
            f"data.task={d.task} needs another model: a {kind} predicts the next token (causal). --model names one",
        ),
        (
            kind != "bdh" or neurons % (2 * m.n_head) == 0,
            ("model.kind", "model.shape.n_hidden", "model.shape.n_head"),
            f"a bdh needs an even number of neurons per head, and {neurons} over model.shape.n_head={m.n_head} is none",
        ),
        (
            not own or m.n_embd % m.n_head == 0,
            ("model.shape.n_embd", "model.shape.n_head"),
            f"model.shape.n_embd={m.n_embd} is not a multiple of model.shape.n_head={m.n_head}",
        ),
        (
            kind != "llama" or m.n_embd % m.n_head != 0 or m.n_embd // m.n_head % 2 == 0,
            ("model.shape.n_embd", "model.shape.n_head", "model.kind"),
            f"a llama needs an even number of channels per head, and model.shape.n_embd={m.n_embd} over "
            f"model.shape.n_head={m.n_head} gives {m.n_embd // m.n_head}",
        ),
        (
            not own or m.n_head % (m.n_kv_head or m.n_head) == 0,
            ("model.shape.n_head", "model.shape.n_kv_head"),
            f"model.shape.n_head={m.n_head} is not a multiple of model.shape.n_kv_head={m.n_kv_head}",
        ),
        (
            kind not in ("gpt", "bdh") or m.n_kv_head in (0, m.n_head),
            ("model.kind", "model.shape.n_kv_head"),
            f"model.kind={kind} has no grouped heads: set model.shape.n_kv_head=0 (given: {m.n_kv_head}) or model.kind=llama",
        ),
        (
            kind in ("gpt", "llama")
            or not own
            or not (m.activation != "auto" or m.qk_norm or m.value_residual or m.zero_init),
            (
                "model.kind",
                "model.shape.activation",
                "model.shape.qk_norm",
                "model.shape.value_residual",
                "model.shape.zero_init",
            ),
            f"model.shape.activation, qk_norm, value_residual and zero_init are for gpt and llama: a {kind} has none of them",
        ),
        (
            kind != "bdh" or t.optimizer != "muon",
            ("model.kind", "train.optimizer"),
            f"train.optimizer={t.optimizer} is for matrices of repeated blocks, and a bdh has none: use adamw",
        ),
        (
            not own or d.seq_len <= m.block_size,
            ("data.seq_len", "model.shape.block_size"),
            f"data.seq_len={d.seq_len} is longer than model.shape.block_size={m.block_size}: lower the one or raise the other",
        ),
        *source_rules(d),
        (
            bool(t.max_steps or t.epochs),
            ("train.max_steps", "train.epochs"),
            "train.max_steps and train.epochs are both 0: one of them must say how long to train",
        ),
        (
            not (t.max_steps and t.epochs),
            ("train.max_steps", "train.epochs"),
            f"train.max_steps={t.max_steps} and train.epochs={t.epochs:g} both say how long to train: set one of them to 0",
        ),
        (
            t.min_lr <= t.learning_rate,
            ("train.min_lr", "train.learning_rate"),
            f"train.min_lr={t.min_lr:g} is above train.learning_rate={t.learning_rate:g}",
        ),
        (
            not t.max_steps or t.warmup_steps <= t.max_steps,
            ("train.warmup_steps", "train.max_steps"),
            f"train.warmup_steps={t.warmup_steps} is longer than train.max_steps={t.max_steps}",
        ),
        (
            not t.max_steps or t.batch_warmup_steps <= t.max_steps,
            ("train.batch_warmup_steps", "train.max_steps"),
            f"train.batch_warmup_steps={t.batch_warmup_steps} is longer than train.max_steps={t.max_steps}",
        ),
        (
            not t.patience or t.eval_every > 0,
            ("train.patience", "train.eval_every"),
            f"train.patience={t.patience} counts evaluations, and train.eval_every=0 turns them off",
        ),
    ]
    return [(keys, message) for fine, keys, message in rules if not fine]


FILES = ("text", "csv", "jsonl", "parquet")


def source_rules(d: "DataConfig") -> list[tuple[bool, tuple[str, ...], str]]:
    """What has to hold of where text comes from: (whether it does, the keys involved, what is wrong)."""
    rules: list[tuple[bool, tuple[str, ...], str]] = []
    for i, part in enumerate(d.mixture or [d]):
        at = f"data.mixture[{i}]." if d.mixture else "data."
        source, keys = part.source, ("data.mixture",) if d.mixture else ("data.source", "data.path", "data.name")
        rules += [
            (source not in FILES or bool(part.path), keys, f"{at}source={source} needs {at}path=FILE_OR_FOLDER"),
            (source in FILES or not part.path, keys, f"{at}path={part.path} is only read with {at}source=text, csv, jsonl or parquet"),
            (source != "hub" or bool(part.name), keys, f"{at}source=hub needs {at}name=OWNER/NAME"),
            (source == "hub" or not part.name, keys, f"{at}name={part.name} is only read with {at}source=hub"),
            (
                not part.streaming or (source == "hub" and d.max_documents > 0),
                ("data.streaming", "data.max_documents"),
                f"{at}streaming=true needs source=hub and data.max_documents=N, the documents to take",
            ),
        ]  # fmt: skip
    one = not d.mixture
    rules += [
        (one or d.source == "stories", ("data.mixture", "data.source"), "data.mixture names the sources: leave data.source out"),
        (one or not (d.val_from or d.test_from), ("data.mixture", "data.val_from", "data.test_from"), "data.val_from and data.test_from go with one source, not with data.mixture"),
        (d.source != "stories" or not one or not (d.val_from or d.test_from or d.test_fraction or d.hook), ("data.source", "data.val_from", "data.test_from", "data.test_fraction", "data.hook"), "the stories have a validation part of their own: data.val_from, test_from, test_fraction and hook are for other sources"),
        (d.val_fraction + d.test_fraction < 1, ("data.val_fraction", "data.test_fraction"), f"data.val_fraction={d.val_fraction:g} and data.test_fraction={d.test_fraction:g} leave nothing to train on"),
        (d.curriculum == "off" or d.packing == "documents", ("data.curriculum", "data.packing"), "data.curriculum=length orders whole documents: it needs data.packing=documents"),
        (d.vocab_size == 0 or d.vocab_size >= 257, ("data.vocab_size",), f"data.vocab_size={d.vocab_size} is too small: 257 or more (256 are the bytes), or 0 for what suits the text"),
        (not d.hook or ":" in d.hook, ("data.hook",), f"data.hook={d.hook} is not file.py:function"),
    ]  # fmt: skip
    return rules
