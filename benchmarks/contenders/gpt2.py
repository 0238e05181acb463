"""The GPT-2 of transformers at a given size, for the trainers that bring no model of their own."""

from transformers import GPT2Config, GPT2LMHeadModel

from .shapes import Shape


def build_gpt2(shape: Shape) -> GPT2LMHeadModel:
    """New weights, in fp32; (B, T) ids and labels in, loss out. Tied embeddings, no dropout, fused attention."""
    config = GPT2Config(
        vocab_size=shape.vocab_size,
        n_positions=shape.block_size,
        n_embd=shape.n_embd,
        n_layer=shape.n_layer,
        n_head=shape.n_head,
        activation_function="gelu_pytorch_tanh",  # the same function as gelu_new, in one kernel
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
        use_cache=False,
        attn_implementation="sdpa",
    )
    return GPT2LMHeadModel(config)
