"""Our gpt and llama are the same functions as transformers' (GPT2, Llama, Qwen3, Arcee) for the same weights."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    ArceeConfig,
    ArceeForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from utils.config.schema import ModelShape
from utils.models.registry import build_model

VOCAB = 61
PLAIN = ModelShape(n_layer=2, n_head=4, n_embd=32, block_size=24, vocab_size=VOCAB)
UNTIED = PLAIN.model_copy(update={"n_layer": 3, "tie_embeddings": False, "n_hidden": 80})
GROUPED = PLAIN.model_copy(update={"n_kv_head": 2, "n_embd": 64, "tie_embeddings": False})
ONE_KEY = PLAIN.model_copy(update={"n_layer": 1, "n_head": 6, "n_kv_head": 1, "n_embd": 48, "block_size": 16})
NORMED = GROUPED.model_copy(update={"qk_norm": True})
SQUARED = GROUPED.model_copy(update={"activation": "relu2", "tie_embeddings": True})
CASES = [("gpt", PLAIN), ("gpt", UNTIED), ("llama", PLAIN), ("llama", GROUPED), ("llama", ONE_KEY),
         ("llama", NORMED), ("llama", SQUARED)]  # fmt: skip


def transformers_gpt(shape: ModelShape) -> GPT2LMHeadModel:
    config = GPT2Config(
        vocab_size=shape.vocab_size,
        n_positions=shape.block_size,
        n_embd=shape.n_embd,
        n_layer=shape.n_layer,
        n_head=shape.n_head,
        n_inner=shape.n_hidden or None,
        tie_word_embeddings=shape.tie_embeddings,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
        attn_implementation="eager",
    )
    return GPT2LMHeadModel(config)


def gpt_weights(theirs: GPT2LMHeadModel) -> dict[str, Tensor]:
    """Their weights under our names; their Conv1D keeps matrices the other way round."""
    names = {"attn.c_attn": "attention.qkv", "attn.c_proj": "attention.out", "mlp.c_fc": "mlp.up",
             "mlp.c_proj": "mlp.down", "ln_1": "norm_1", "ln_2": "norm_2", "transformer.h.": "blocks.",
             "transformer.wte": "token_embedding", "transformer.wpe": "position_embedding",
             "transformer.ln_f": "norm", "lm_head": "head"}  # fmt: skip
    ours = {}
    for name, weight in theirs.state_dict().items():
        flip = name.endswith("weight") and (".c_" in name)
        for old, new in names.items():
            name = name.replace(old, new)
        ours[name] = weight.T if flip else weight
    return ours


def transformers_llama(shape: ModelShape, mlp_width: int) -> nn.Module:
    """Their Llama, or the one of its kin that norms queries and keys (Qwen3) or squares a ReLU (Arcee)."""
    kind, model = LlamaConfig, LlamaForCausalLM
    if shape.qk_norm:
        kind, model = Qwen3Config, Qwen3ForCausalLM
    elif shape.activation == "relu2":
        kind, model = ArceeConfig, ArceeForCausalLM
    config = kind(
        vocab_size=shape.vocab_size,
        max_position_embeddings=shape.block_size,
        hidden_size=shape.n_embd,
        intermediate_size=mlp_width,
        num_hidden_layers=shape.n_layer,
        num_attention_heads=shape.n_head,
        num_key_value_heads=shape.n_kv_head or shape.n_head,
        head_dim=shape.n_embd // shape.n_head,
        rms_norm_eps=1e-5,
        bos_token_id=0,
        eos_token_id=0,
        tie_word_embeddings=shape.tie_embeddings,
        attn_implementation="sdpa",
    )
    return model(config)


def llama_weights(theirs: nn.Module, n_layer: int) -> dict[str, Tensor]:
    """Their weights under our names; queries, keys and values lie below each other in ours."""
    w = theirs.state_dict()
    ours = {"token_embedding.weight": w["model.embed_tokens.weight"], "norm.weight": w["model.norm.weight"],
            "head.weight": w["lm_head.weight"]}  # fmt: skip
    for i in range(n_layer):
        old, new = f"model.layers.{i}.", f"blocks.{i}."
        parts = [w[f"{old}self_attn.{part}_proj.weight"] for part in "qkv"]
        ours[f"{new}attention.qkv.weight"] = torch.cat(parts)
        ours[f"{new}attention.out.weight"] = w[f"{old}self_attn.o_proj.weight"]
        for part in ("gate", "up", "down"):
            if f"{old}mlp.{part}_proj.weight" in w:
                ours[f"{new}mlp.{part}.weight"] = w[f"{old}mlp.{part}_proj.weight"]
        for part in ("q_norm", "k_norm"):
            if f"{old}self_attn.{part}.weight" in w:
                ours[f"{new}attention.qk_norm.{part}.weight"] = w[f"{old}self_attn.{part}.weight"]
        ours[f"{new}norm_1.weight"] = w[f"{old}input_layernorm.weight"]
        ours[f"{new}norm_2.weight"] = w[f"{old}post_attention_layernorm.weight"]
    return ours


def twins(kind: str, shape: ModelShape) -> tuple[nn.Module, nn.Module]:
    """(ours, theirs) with the same weights, large enough that every part shows in the logits."""
    torch.manual_seed(0)
    ours = build_model(kind, shape)
    mlp_width = ours.blocks[0].mlp.up.out_features
    theirs = transformers_gpt(shape) if kind == "gpt" else transformers_llama(shape, mlp_width)
    with torch.no_grad():
        for p in theirs.parameters():
            p.add_(torch.randn_like(p) * 0.05)
    weights = gpt_weights(theirs) if kind == "gpt" else llama_weights(theirs, shape.n_layer)
    ours.load_state_dict(weights, strict=True)
    return ours, theirs


@pytest.mark.parametrize(("kind", "shape"), CASES)
def test_logits_equal_transformers(kind: str, shape: ModelShape) -> None:
    ours, theirs = twins(kind, shape)
    ours.eval(), theirs.eval()
    for length in (1, 7, shape.block_size):
        ids = torch.randint(VOCAB, (3, length))
        with torch.no_grad():
            difference = (ours(ids) - theirs(ids).logits).abs().max().item()
        assert difference <= 1e-5


@pytest.mark.parametrize(("kind", "shape"), CASES)
def test_gradients_equal_transformers(kind: str, shape: ModelShape) -> None:
    ours, theirs = twins(kind, shape)
    ours.train(), theirs.train()
    ids = torch.randint(VOCAB, (2, shape.block_size))
    targets = torch.randint(VOCAB, (2 * shape.block_size,))
    F.cross_entropy(ours(ids).flatten(0, 1), targets).backward()
    F.cross_entropy(theirs(ids).logits.flatten(0, 1), targets).backward()
    mine = ours.token_embedding.weight.grad
    their = theirs.get_input_embeddings().weight.grad
    assert (mine - their).norm() <= 1e-5 * their.norm()
