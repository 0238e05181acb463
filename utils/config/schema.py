"""Every setting of a run, with its unit and its limits; knows nothing of files, YAML or torch."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from utils.config.rules import BUILT_IN, disagreements

__all__ = ["BUILT_IN", "RunConfig", "field_table"]


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
    activation: Literal["auto", "gelu", "swiglu", "relu2"] = "auto"
    """What the feed-forward layer does: auto = the kind's own (gpt gelu, llama swiglu); relu2 = the square of what is above 0, two matrices and no gate."""
    qk_norm: bool = False
    """Whether queries and keys are normed in each head before they meet, which lets the learning rate be higher (gpt, llama)."""
    value_residual: bool = False
    """Whether each layer's values are mixed with the first layer's, in a share that is learned (gpt, llama)."""
    zero_init: bool = False
    """Whether what adds to the residual stream begins at zero, so that a deep model begins as a shallow one (gpt, llama)."""


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

    @field_validator("batch_size", mode="before")
    @classmethod
    def _auto_is_zero(cls, value: Any) -> Any:
        return 0 if value == "auto" else value

    @field_validator("compile", mode="before")
    @classmethod
    def _yaml_reads_on_as_true(cls, value: Any) -> Any:
        return {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value

    max_steps: int = Field(1000, ge=0)
    """Length of the run, in optimizer steps; 0 = as many as train.epochs needs."""
    epochs: float = Field(0.0, ge=0.0)
    """Length of the run, in passes over the training text; 0 = train.max_steps decides."""
    batch_size: int = Field(16, ge=0)
    """Examples per micro-batch; auto (or 0) = the largest power of two that fits into memory, found once per run."""
    grad_accum_steps: int = Field(1, ge=1)
    """Micro-batches per optimizer step; 1 x 8 and 8 x 1 train alike."""
    batch_warmup_steps: int = Field(0, ge=0)
    """Steps over which the examples per optimizer step rise from an eighth to batch_size x grad_accum_steps; 0 = all from the start."""
    optimizer: Literal["auto", "adamw", "muon"] = "auto"
    """What turns gradients into steps: adamw for everything, or muon for the matrices between the embedding and the output layer and adamw for the rest; auto = muon for gpt and llama, where it learns more in the same time, else adamw."""
    muon_momentum: float = Field(0.95, ge=0.0, lt=1.0)
    """Muon: decay of the running sum of gradients."""
    learning_rate: float = Field(3e-3, gt=0.0)
    """Peak learning rate, reached after the warmup."""
    min_lr: float = Field(0.0, ge=0.0)
    """Learning rate at the last step (schedules cosine, linear and wsd)."""
    warmup_steps: int = Field(50, ge=0)
    """Steps over which the learning rate rises linearly from near 0; a preset's is cut where train.max_steps is shorter."""
    schedule: Literal["cosine", "linear", "wsd", "constant"] = "wsd"
    """Shape of the learning rate after warmup; wsd = stable, then a linear fall over the last part (train.decay_share)."""
    decay_share: float = Field(0.6, gt=0.0, le=1.0)
    """Share of the run, at its end, over which schedule=wsd falls."""
    weight_decay: float = Field(0.1, ge=0.0)
    """Decoupled weight decay of matrices and embeddings; biases and norms never decay."""
    beta1: float = Field(0.9, ge=0.0, lt=1.0)
    """AdamW: decay of the running mean of gradients."""
    beta2: float = Field(0.99, ge=0.0, lt=1.0)
    """AdamW: decay of the running mean of squared gradients."""
    grad_clip: float = Field(1.0, ge=0.0)
    """Largest norm of the gradient over all parameters; 0 = no clipping."""
    label_smoothing: float = Field(0.0, ge=0.0, lt=1.0)
    """Share of the target that is spread over all tokens; the validation loss stays without it."""
    z_loss: float = Field(0.0, ge=0.0)
    """Weight of the squared log of the softmax's denominator, which keeps logits from drifting; 1e-4 is usual; the validation loss stays without it."""
    ema_decay: float = Field(0.0, ge=0.0, lt=1.0)
    """Decay of a running average of the weights, which is then what is evaluated, sampled, saved and exported; 0 = off."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Number format of the forward pass; auto = bf16 where the hardware is faster in it, fp16 on a GPU without bf16, else fp32."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Whether to compile the model into larger kernels; auto = where the run is long enough to win back twice the minute it takes."""
    activation_checkpointing: bool = False
    """Whether to forget what a layer computed and compute it again in the backward pass: less memory, for one more forward pass (gpt, llama, bdh, hub)."""
    memory_limit_gb: float = Field(0.0, ge=0.0)
    """The most memory training may take, in GB (10^9 bytes); 0 = what there is. At the limit micro-batches are halved."""
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
    spike: float = Field(2.0, ge=0.0)
    """A training loss this far above its recent mean, in nats, sends the run back to its last good checkpoint; 0 = never."""
    max_rollbacks: int = Field(3, ge=0)
    """How often a run may go back to its last good checkpoint, each time with half the learning rate, before it fails."""
    stats_every: int = Field(100, ge=0)
    """Steps between statistics of each layer: gradient norm, weight norm, update-to-weight ratio, histogram."""
    answers_every_eval: int = Field(0, ge=0)
    """How many answers to write and score with BLEU and chrF at each evaluation (seq2seq models, pairs, chats; needs sacrebleu)."""
    profile: int = Field(0, ge=0)
    """How many steps to record with torch's profiler, from the tenth on, into the run's profile/ folder."""
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
