"""`tbt generate`: text from a run's best checkpoint, or from any model folder."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from utils.cli.options import Trust


def generate(
    model: Annotated[
        Path | None,
        typer.Argument(metavar="[RUN_OR_FOLDER]", help="A run, checkpoint or model folder; default: the latest run."),
    ] = None,
    prompt: Annotated[str, typer.Option("--prompt", help="The text to go on from.")] = "\n",
    chat: Annotated[
        bool, typer.Option("--chat", help="The prompt is what you say to a chat model; only its answer is shown.")
    ] = False,
    max_new_tokens: Annotated[int, typer.Option(min=0, help="How much to write, in tokens.")] = 400,
    temperature: Annotated[
        float, typer.Option(min=0.0, help="0 = always the likeliest token; above 1 = wilder.")
    ] = 0.8,
    top_k: Annotated[int, typer.Option(min=0, help="Choose among the k likeliest tokens; 0 = all.")] = 0,
    top_p: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Choose among the likeliest tokens that share this probability.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="The same seed writes the same text.")] = 0,
    checkpoint: Annotated[str, typer.Option(help="Which of a run's checkpoints: best, latest or a step.")] = "best",
    trust_sha256: Trust = "",
    stream: Annotated[bool, typer.Option("--stream/--no-stream", help="Show the text as it is written.")] = True,
) -> None:
    """Let a trained model write.

    tbt generate runs/book --prompt "The "            tbt generate runs/chats --chat --prompt "What is 2 + 3?"
    """
    from utils.jobs.complete import complete
    from utils.runs.folder import latest_run

    pieces = complete(
        model or latest_run().path, prompt, checkpoint=checkpoint, trust_sha256=trust_sha256,
        max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed, chat=chat,
    )  # fmt: skip
    if not stream:
        pieces = iter(["".join(pieces)])
    sys.stdout.write("" if chat else prompt)
    for piece in pieces:
        sys.stdout.write(piece)
        sys.stdout.flush()
    print()
