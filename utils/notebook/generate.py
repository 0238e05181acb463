"""Let a trained model write, from a notebook cell."""

from pathlib import Path

from utils.jobs.complete import complete
from utils.notebook.display import Text
from utils.runs.folder import latest_run


def generate(
    path: str | Path | None = None,
    prompt: str = "\n",
    max_new_tokens: int = 400,
    temperature: float = 0.8,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    checkpoint: str = "best",
    trust_sha256: str = "",
    chat: bool = False,
) -> Text:
    """The text that a run's model, or that of a model folder, continues `prompt` with; the latest run by default.

    `chat`: the prompt is what you say to a model that learned from chats, and the text is its answer.
    """
    where = Path(path or latest_run().path)
    pieces = complete(
        where, prompt, checkpoint=checkpoint, trust_sha256=trust_sha256,
        max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed, chat=chat,
    )  # fmt: skip
    return Text("".join(pieces), f"{prompt}\n" if chat else prompt)
