"""Every setting of a run, with its unit and its limits; knows nothing of files, YAML or torch."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

BUILT_IN = ("gpt", "llama", "bdh")  # the kinds of model this package writes itself
Problem = tuple[tuple[str, ...], str]  # the dotted keys involved, what is wrong and what to do


class Section(BaseModel):
    """A group of settings: frozen, and a key nobody knows is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _yes_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation in (int, float):
            raise PydanticCustomError("not_a_number", "input should be a number, not yes or no")
        return value


class ModelShape(Section):
    """The size of a built-in transformer; a model from elsewhere (builder, hub, folder) brings its own."""

    n_layer: int = Field(4, ge=1)
    """Number of transformer blocks."""
    n_head: int = Field(4, ge=1)
    """Number of attention heads; must divide n_embd."""
    n_kv_head: int = Field(0, ge=0)
    """Number of key-value heads shared by the attention heads; 0 = n_head. Only llama groups them."""
    n_embd: int = Field(128, ge=2)
    """Width of the residual stream, in channels."""
    n_hidden: int = Field(0, ge=0)
    """Width of the feed-forward layer, in channels (bdh: neurons over all heads); 0 = the kind's usual (gpt 4 x, llama 8/3 x, bdh 128 x n_embd)."""
    block_size: int = Field(256, ge=1)
    """The longest text the model can see, in tokens."""
    vocab_size: int = Field(0, ge=0)
    """Rows of the embedding table, in tokens; 0 = the tokenizer's vocabulary."""
    pad_vocab_to: int = Field(1, ge=1)
    """Round the rows up to a multiple of this; 64 makes the last layer faster on a GPU. Only where vocab_size is 0."""
    dropout: float = Field(0.0, ge=0.0, lt=1.0)
    """Probability of dropping an activation in training."""
    tie_embeddings: bool = True
    """Whether the input embedding is also the output layer (saves n_embd x vocab_size parameters); a bdh never does."""


class ModelConfig(Section):
    """Which model is trained."""

    kind: Literal["gpt", "llama", "bdh", "builder", "hub", "folder"] = "llama"
    """Built in: gpt (learned positions, LayerNorm, GELU), llama (RoPE, RMSNorm, SwiGLU), bdh (linear attention, sparse neurons). From model.ref: builder (model.py + config.json), hub (transformers), folder (a run or checkpoint of ours)."""
    ref: str = ""
    """Where the model is: gist id or URL, folder or zip (builder); owner/name or folder (hub); run, checkpoint or model folder (folder)."""
    revision: str = ""
    """Which commit of the gist or Hub repository; empty = the newest, which the run then keeps to."""
    pretrained: bool = True
    """Whether to begin with the weights published (hub, folder); false = draw new ones from train.seed."""
    trust_sha256: str = Field("", pattern="^([0-9a-f]{64})?$")
    """The sha256 of a model.py that may run where its process cannot be walled off (kind=builder): your consent to exactly that file."""
    shape: ModelShape = ModelShape()
    """The size of the model."""


class SourceConfig(Section):
    """Where documents come from, and what of each is read."""

    source: Literal["stories", "text", "csv", "jsonl", "parquet", "hub"] = "stories"
    """Where text comes from: the embedded stories, files at data.path (text, csv, jsonl, parquet), or a dataset of the Hub at data.name."""
    path: str = ""
    """File, folder or pattern such as texts/*.txt (source=text, csv, jsonl, parquet); .gz and .zst are unpacked; a folder means every file of that kind below it."""
    name: str = ""
    """Dataset of the Hub, as owner/name (source=hub)."""
    config: str = ""
    """Which configuration of that dataset, such as wikitext-2-raw-v1; empty = its only one."""
    revision: str = ""
    """Which commit of the dataset; empty = the newest, which the run then keeps to."""
    split: str = "train"
    """Which split of the dataset to train on."""
    streaming: bool = False
    """Whether to take only data.max_documents from the dataset as it arrives, without downloading all of it: for sets larger than the disk."""
    document: Literal["passage", "file", "line"] = "passage"
    """What one document is (source=text): a whole file, a line, or a passage: a file, cut at empty lines where it is long."""
    text_field: str = ""
    """Column that holds the text, the prompt of a pair, or a list of chat messages; empty = found by its name and type."""
    target_field: str = ""
    """Column that holds the answer: only it is learned, the text being what comes before it (or, for seq2seq, what is read)."""
    label_field: str = ""
    """Column that holds the class of the text (task=classification); empty = label."""


class MixturePart(SourceConfig):
    """One of several sources that are learned together."""

    weight: float = Field(1.0, gt=0.0)
    """Share of the training examples that come from it, relative to the weights of the others."""


class DataConfig(SourceConfig):
    """What text the model learns, and how it is cut into tokens."""

    mixture: list[MixturePart] = []
    """Several sources with weights, instead of one: [{source: text, path: a.txt, weight: 3}, {source: hub, name: owner/name}]."""
    size: int = Field(2_000_000, ge=1_000)
    """How much of the stories to write, in characters (source=stories)."""
    seed: int = Field(0, ge=0)
    """Which stories are written (source=stories), and which documents a stream is shuffled into (data.streaming)."""
    max_documents: int = Field(0, ge=0)
    """How many documents to take from each source, the first ones; 0 = all."""
    shuffle_buffer: int = Field(10_000, ge=1)
    """How many documents of a stream wait to be drawn from at random (data.streaming)."""
    hook: str = ""
    """Your own function, as file.py:function: it gets each document as a dict and returns it changed, or None to leave it out."""
    on_bad_row: Literal["stop", "skip"] = "stop"
    """What to do with a row that cannot be read: stop and name it, or skip, count and report it."""
    val_from: str = ""
    """Where validation documents are, if not part of the others: a split of the Hub dataset, or a file or folder; empty = data.val_fraction."""
    test_from: str = ""
    """The same for test documents; empty = data.test_fraction."""
    val_fraction: float = Field(0.05, gt=0.0, lt=1.0)
    """Share of the documents that is only used for validation."""
    test_fraction: float = Field(0.0, ge=0.0, lt=1.0)
    """Share of the documents that is used for nothing but `tbt evaluate --on test`."""
    split_by: Literal["content", "position"] = "content"
    """How documents are chosen for validation: by what they say, so that more text moves none of them, or the last ones."""
    duplicates: Literal["together", "drop", "ignore"] = "together"
    """What to do with documents that are almost alike: keep them on one side of the split, keep only the first, or nothing."""
    task: Literal["auto", "causal", "masked", "seq2seq", "classification"] = "auto"
    """What is learned: the next token (causal), hidden tokens (masked), the answer or second half of a text (seq2seq), its class (classification); auto = what the model is made for."""
    mask_fraction: float = Field(0.15, gt=0.0, lt=1.0)
    """Share of tokens to hide and predict (task=masked)."""
    whole_words: bool = True
    """Whether all tokens of a word are hidden together (task=masked)."""
    packing: Literal["auto", "blocks", "documents"] = "auto"
    """What an example is: blocks = data.seq_len tokens of the running text; documents = whole documents that do not see each other; auto = documents for chats, pairs and labelled texts, else blocks."""
    curriculum: Literal["off", "length"] = "off"
    """Order of the first epoch: off = shuffled, length = short documents first (packing=documents)."""
    tokenizer: str = "auto"
    """What a token is: char, byte, or trained on this text: bpe, wordpiece, unigram; or owner/name or a folder with a tokenizer.json; auto = a trained model's own, else bpe."""
    tokenizer_revision: str = ""
    """Which commit of the tokenizer's Hub repository; empty = the newest, which the run then keeps to."""
    vocab_size: int = Field(1024, ge=0)
    """How many tokens a trained tokenizer may have, 256 of them bytes; 0 = as many as suit the size of the text. A model from elsewhere may lower it to its own table."""
    chat_template: str = ""
    """Jinja template that writes chat messages as text; empty = the tokenizer's own, else ChatML."""
    separator: Literal["auto", "end", "newline", "nothing"] = "auto"
    """What follows each document: the tokenizer's end-of-text token, or a newline; auto = that token if there is one, else a newline."""
    seq_len: int = Field(256, ge=1)
    """Length of one training example, in tokens; at most model.shape.block_size. A model from elsewhere may lower it to its own limit."""


class TrainConfig(Section):
    """How the model is trained. Every cadence is in optimizer steps, and 0 turns it off."""

    max_steps: int = Field(1000, ge=0)
    """Length of the run, in optimizer steps; 0 = as many as train.epochs needs."""
    epochs: float = Field(0.0, ge=0.0)
    """Length of the run, in passes over the training text; 0 = train.max_steps decides."""
    batch_size: int = Field(16, ge=1)
    """Examples per micro-batch."""
    grad_accum_steps: int = Field(1, ge=1)
    """Micro-batches per optimizer step; 1 x 8 and 8 x 1 train alike."""
    learning_rate: float = Field(3e-3, gt=0.0)
    """Peak learning rate, reached after the warmup."""
    min_lr: float = Field(3e-4, ge=0.0)
    """Learning rate at the last step (schedules cosine, linear and wsd)."""
    warmup_steps: int = Field(50, ge=0)
    """Steps over which the learning rate rises linearly from near 0; a preset's is cut where train.max_steps is shorter."""
    schedule: Literal["cosine", "linear", "wsd", "constant"] = "cosine"
    """Shape of the learning rate after warmup; wsd = stable, then a linear fall over the last fifth."""
    weight_decay: float = Field(0.1, ge=0.0)
    """Decoupled weight decay of matrices and embeddings; biases and norms never decay."""
    beta1: float = Field(0.9, ge=0.0, lt=1.0)
    """AdamW: decay of the running mean of gradients."""
    beta2: float = Field(0.99, ge=0.0, lt=1.0)
    """AdamW: decay of the running mean of squared gradients."""
    grad_clip: float = Field(1.0, ge=0.0)
    """Largest norm of the gradient over all parameters; 0 = no clipping."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Number format of the forward pass; auto = bf16 on a GPU that has it, fp16 on one that hasn't, else fp32."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to train; auto = the GPU if there is one."""
    threads: int = Field(0, ge=0)
    """CPU threads for torch; 0 = all cores. A run keeps the number it started with: it changes rounding."""
    eval_every: int = Field(100, ge=0)
    """Steps between evaluations on the validation text (there is always one at the end)."""
    eval_batches: int = Field(0, ge=0)
    """Batches per evaluation, spread evenly over the validation text; 0 = all of it."""
    save_every: int = Field(100, ge=0)
    """Steps between checkpoints (there is always one at the end, and one when interrupted)."""
    log_every: int = Field(10, ge=0)
    """Steps between rows of training metrics."""
    sample_every: int = Field(0, ge=0)
    """Steps between samples of the model's own text."""
    sample_prompt: str = Field("\n", min_length=1)
    """The text each sample continues."""
    sample_tokens: int = Field(300, ge=1)
    """Length of each sample, in tokens."""
    patience: int = Field(0, ge=0)
    """Stop after this many evaluations in a row without a better validation loss."""
    seed: int = Field(1337, ge=0)
    """Decides initial weights, order of the data, dropout and samples."""
    deterministic: bool = False
    """Whether to allow only GPU algorithms that repeat bit for bit (slower); a CPU always does."""


class CheckpointConfig(Section):
    """Which checkpoints are kept."""

    keep_last: int = Field(2, ge=1)
    """How many of the newest checkpoints to keep."""
    keep_best: bool = True
    """Whether to also save and keep the checkpoint with the lowest validation loss."""


class RunConfig(Section):
    """One training run: model, data, training, checkpoints, and the folder it leaves."""

    model: ModelConfig = ModelConfig()
    """Which model is trained."""
    data: DataConfig = DataConfig()
    """What it learns from."""
    train: TrainConfig = TrainConfig()
    """How it is trained."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """Which checkpoints are kept."""
    run_dir: str = ""
    """Folder of the run; empty = runs/<preset>-<six letters of the settings' hash>, the same for the same settings."""

    @model_validator(mode="after")
    def _settings_agree(self) -> "RunConfig":
        found = disagreements(self)
        if found:
            text = "; ".join(message for _, message in found)
            raise PydanticCustomError("disagreement", "{text}", {"text": text, "problems": found})
        return self


def disagreements(config: RunConfig) -> list[Problem]:
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
            not t.patience or t.eval_every > 0,
            ("train.patience", "train.eval_every"),
            f"train.patience={t.patience} counts evaluations, and train.eval_every=0 turns them off",
        ),
    ]
    return [(keys, message) for fine, keys, message in rules if not fine]


FILES = ("text", "csv", "jsonl", "parquet")


def source_rules(d: DataConfig) -> list[tuple[bool, tuple[str, ...], str]]:
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


def field_table() -> list[tuple[str, str, Any, str]]:
    """(dotted key, type in words, default, description) of every setting, in order."""

    def walk(section: type[BaseModel], prefix: str) -> list[tuple[str, str, Any, str]]:
        rows: list[tuple[str, str, Any, str]] = []
        for name, field in section.model_fields.items():
            kind = field.annotation
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                rows += walk(kind, f"{prefix}{name}.")
            else:
                words = kind.__name__ if isinstance(kind, type) else " | ".join(map(str, getattr(kind, "__args__", ())))
                rows.append((prefix + name, words, field.default, field.description or ""))
        return rows

    return walk(RunConfig, "")
