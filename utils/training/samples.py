"""The model's own text while it learns; disturbs nothing, as its draws are a function of the step."""

from collections.abc import Callable

from utils.config.schema import RunConfig
from utils.data.storing.token_store import TokenStore
from utils.inference.generate import generate_text
from utils.runs.recorder import Recorder
from utils.runtime.randomness import derive_seed
from utils.training.trainer import Trainer

SAMPLE_TEMPERATURE = 0.7  # they show what was learned, not how wild it can be


def build_sampling(store: TokenStore, config: RunConfig, recorder: Recorder, task: str) -> Callable[[Trainer], None]:
    """A function that writes what the model says to `train.sample_prompt` into the events of the run.

    Raises ValueError for a prompt that the tokenizer has no tokens for.
    """
    t = config.train
    if task == "classification":  # says what a text is, and writes none
        return lambda trainer: None
    unknown = store.tokenizer.unknown_characters(t.sample_prompt)
    if t.sample_every and unknown:
        raise ValueError(f"train.sample_prompt has characters the training text lacks: {unknown!r}")

    def sample(trainer: Trainer) -> None:
        seed = derive_seed(t.seed, "sample", trainer.progress.step) % 2**32
        pieces = generate_text(
            trainer.model, store.tokenizer, t.sample_prompt, t.sample_tokens, SAMPLE_TEMPERATURE, seed=seed
        )
        recorder.event("sample", step=trainer.progress.step, text=t.sample_prompt + "".join(pieces))

    return sample
