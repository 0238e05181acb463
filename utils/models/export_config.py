"""A stranger's config.json as plain settings, by any usual name and wherever it keeps them; knows no code, no torch."""

from collections.abc import Iterator, Mapping
from typing import Any

VOCABULARY = ("vocab_size", "n_vocab", "vocabulary_size", "num_tokens", "n_tokens", "ntoken", "num_embeddings")
LENGTH = (
    "block_size", "max_seq_len", "max_seq_length", "seq_len", "seq_length", "max_position_embeddings", "n_positions",
    "context_length", "max_length", "max_len", "max_sequence_length", "n_ctx", "context_size", "ctx_len",
)  # fmt: skip
ALIASES = (
    VOCABULARY,
    LENGTH,
    ("d_model", "n_embd", "hidden_size", "embed_dim", "embedding_dim", "model_dim", "emb_dim", "n_embed", "dim"),
    ("n_head", "nhead", "num_heads", "n_heads", "num_attention_heads", "heads"),
    ("n_kv_head", "n_kv_heads", "num_kv_heads", "num_key_value_heads"),
    ("n_layer", "num_layers", "n_layers", "num_hidden_layers", "depth", "layers", "num_blocks", "n_blocks"),
    (
        "d_ff",
        "dim_feedforward",
        "ffn_dim",
        "d_ffn",
        "intermediate_size",
        "ff_dim",
        "n_inner",
        "ffn_hidden",
        "hidden_dim",
    ),
    ("dropout", "dropout_rate", "dropout_prob", "p_dropout", "hidden_dropout_prob", "resid_pdrop"),
    ("num_experts", "n_experts", "n_expert", "num_local_experts"),
    ("top_k", "num_experts_per_tok", "experts_per_token"),
    ("num_classes", "n_classes", "num_labels", "n_labels"),
    ("pad_token_id", "padding_idx", "pad_idx", "pad_id"),
)
# An encoder-decoder may have two of what its config says once.
FALLBACKS = {
    "src_vocab_size": "vocab_size", "tgt_vocab_size": "vocab_size", "source_vocab_size": "vocab_size",
    "target_vocab_size": "vocab_size", "num_encoder_layers": "num_layers", "num_decoder_layers": "num_layers",
    "n_encoder_layers": "num_layers", "n_decoder_layers": "num_layers", "encoder_layers": "num_layers",
    "decoder_layers": "num_layers", "max_src_len": "max_seq_len", "max_tgt_len": "max_seq_len",
}  # fmt: skip
# Where settings may be nested; a later one wins over an earlier one.
NESTS = ("model", "architecture", "hyperparameters", "hparams", "params", "model_params", "model_kwargs", "model_args",
         "model_config", "config")  # fmt: skip
NODE_SETTINGS = ("params", "parameters", "config", "args", "attributes", "properties")


class Settings(dict):
    """A config as strangers' constructors read one: `c.n_embd`, `c["n_embd"]`, `c.get("n_embd")`, by any usual name."""

    def __missing__(self, key: str) -> Any:
        other = alias_in(self, key)
        if other is None:
            raise KeyError(key)
        return self[other]

    def __getattr__(self, key: str) -> Any:
        other = None if key.startswith("__") else alias_in(self, key)
        if other is None:
            raise AttributeError(f"config has no {key}; it has {', '.join(self) or 'no keys'}")
        return self[other]

    def get(self, key: str, default: Any = None) -> Any:
        """As a dict's, by any usual name."""
        other = alias_in(self, key)
        return default if other is None else self[other]


def alias_in(values: Mapping[str, Any], name: str) -> str | None:
    """The key of `values` that means `name`: itself, or another usual word for the same; None without one."""
    if name in values:
        return name
    for group in ALIASES:
        if name in group:
            return next((other for other in group if other in values), None)
    return alias_in(values, FALLBACKS[name]) if name in FALLBACKS else None


def number_in(flat: Settings, names: tuple[str, ...]) -> int:
    """The config's word for the first of these names, under any usual name; 0 without one."""
    value = next((flat.get(name) for name in names if flat.get(name) is not None), 0)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def flatten(config: Mapping[str, Any]) -> Settings:
    """The settings of a config, wherever it keeps them: at its top, under `params` and the like, or in its nodes.

    The top wins over what is nested. Among the nodes of a graph the first to name a value wins: the embedding comes
    first, and a later node may use the same word for something of its own.
    """
    flat = Settings()
    for node in _nodes(config):
        for key, value in node.items():
            flat.setdefault(key, value)
    for nest in NESTS:
        if isinstance(config.get(nest), dict):
            flat.update(flatten(config[nest]))
    flat.update({key: value for key, value in config.items() if key not in NESTS or not isinstance(value, dict)})
    flat.pop("nodes", None)
    flat.update({key: Settings(value) for key, value in flat.items() if type(value) is dict})
    if "transformers_version" in flat:
        flat.pop("max_length", None)  # there it says how much to generate
    return flat


def _nodes(config: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The settings of each node of a graph, which may be a list or named one by one."""
    nodes = config.get("nodes")
    nodes = list(nodes.values()) if isinstance(nodes, dict) else nodes
    for node in nodes if isinstance(nodes, list) else []:
        for place in (node, node.get("data") if isinstance(node, dict) else None):
            inside = [place.get(name) for name in NODE_SETTINGS] if isinstance(place, dict) else []
            yield from (settings for settings in inside if isinstance(settings, dict))
