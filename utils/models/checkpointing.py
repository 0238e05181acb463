"""Which models can compute their activations a second time, and how they are told to; knows no training."""

from torch import nn

from utils.models.folder import unwrap


def use_checkpointing(model: nn.Module) -> None:
    """Have `model` keep in training only what each layer was given, and compute the rest again in the backward pass.

    The same gradients from less memory (Chen et al. 2016, https://arxiv.org/abs/1604.06174). gpt, llama and bdh do so
    by their attribute `checkpointing`; a model of transformers by its own switch.

    Raises ValueError for an export: a layer of somebody's that counts, keeps or draws something in its forward pass
    would do so twice, and nobody can tell from outside.
    """
    model = unwrap(model)
    inner = getattr(model, "inner", None)
    if hasattr(model, "checkpointing"):
        setattr(model, "checkpointing", True)  # noqa: B010 - torch types every attribute of a module as a tensor
    elif inner is not None and getattr(inner, "supports_gradient_checkpointing", False):
        if hasattr(inner, "activation_checkpointing_enable"):  # the newer name of the same
            inner.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        else:
            inner.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    else:
        raise ValueError(
            f"train.activation_checkpointing=true cannot be done for {type(inner or model).__name__}: only gpt, llama, "
            "bdh and models of transformers can compute a layer twice. Leave it false, and lower train.batch_size "
            "(with more train.grad_accum_steps) to save memory"
        )
