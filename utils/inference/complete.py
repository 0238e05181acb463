"""A prompt and the place of a trained model in, the text that follows out: what `tbt generate` and notebooks call."""

from collections.abc import Iterator
from pathlib import Path

from utils.data.tokenizing.chat import encode_question
from utils.inference.generate import generate_ids, generate_text, stop_ids_of, stream_text
from utils.inference.load import load_for_inference


def complete(
    path: Path,
    prompt: str,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    checkpoint: str = "best",
    chat: bool = False,
) -> Iterator[str]:
    """Stream the text that the model at `path` (a run, a checkpoint, a model folder) continues `prompt` with.

    `chat`: the prompt is what a user says, put into the tokenizer's chat template; what follows is the answer.
    Raises FileNotFoundError where there is no model, ValueError for a prompt with characters the model has
    never seen, for a chat with a model that knows none, and as `generate_text` does.
    """
    model, tokenizer = load_for_inference(path, checkpoint)
    unknown = tokenizer.unknown_characters(prompt)
    if unknown:
        raise ValueError(f"the prompt has characters that the model has never seen: {unknown!r}")
    if chat:
        ids, ends = encode_question(prompt, tokenizer)
        stop, mask = stop_ids_of(tokenizer) | ends, tokenizer.mask_id
        settings = {"vocab_size": tokenizer.vocab_size, "stop_ids": stop, "mask_id": mask}
        new = generate_ids(model, ids, max_new_tokens, temperature, top_k, top_p, seed, **settings)
        return stream_text(tokenizer, new)
    return generate_text(model, tokenizer, prompt, max_new_tokens, temperature, top_k, top_p, seed)
