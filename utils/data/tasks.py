"""What there is to learn in a block of text: the next token, hidden tokens, or how a text goes on. One batch, one draw.

Shapes: B examples of T tokens. A label of -100 is not counted; label t belongs to logit t.
"""

import numpy as np
import torch

from utils.data.batches import EvalBatches, TrainBatches
from utils.runtime.randomness import derive_seed

IGNORED = -100
Inputs = tuple[torch.Tensor, ...]  # what a model of the task is called with, in order


class TaskBatches:
    """Batches of `blocks`, made into examples of `task`: a pure function of (seed, k), as they are.

    causal: the inputs are (input_ids,). masked: as in BERT (Devlin et al. 2019, section 3.1,
    https://arxiv.org/abs/1810.04805) `mask_fraction` of the tokens are to be predicted; of those 80 % are replaced by
    `mask_id`, 10 % by any other token and 10 % left alone. seq2seq: (the first half, the second half one token late).
    """

    def __init__(
        self,
        blocks: TrainBatches | EvalBatches,
        task: str = "causal",
        seed: int = 0,
        mask_id: int = 0,
        mask_fraction: float = 0.15,
    ) -> None:
        self.blocks, self.task, self.seed, self.mask_id = blocks, task, seed, mask_id
        self.mask_fraction = mask_fraction

    def __len__(self) -> int:
        return len(self.blocks)

    @property
    def tokens_per_batch(self) -> int:
        """Tokens a whole batch holds."""
        return self.blocks.batch_size * self.blocks.seq_len

    @property
    def tokens_per_epoch(self) -> int:
        """Tokens of one pass over the training text."""
        return self.blocks.tokens_per_epoch

    def batch(self, k: int) -> tuple[Inputs, torch.Tensor]:
        """What the model is called with in batch k, and the labels of its logits."""
        input_ids, labels = self.blocks.batch(k)  # (B, T) each
        if self.task == "masked":
            return self._masked(input_ids, labels, k)
        if self.task == "seq2seq":
            half = max(1, input_ids.shape[1] // 2)
            # The decoder starts from the last token it could have read: no special token is needed.
            return (input_ids[:, :half], input_ids[:, half - 1 :]), labels[:, half - 1 :]
        return (input_ids,), labels

    def _masked(self, ids: torch.Tensor, labels: torch.Tensor, k: int) -> tuple[Inputs, torch.Tensor]:
        draw, size = np.random.Generator(np.random.Philox(derive_seed(self.seed, "mask", k))), tuple(ids.shape)
        chosen = torch.from_numpy(draw.random(size) < self.mask_fraction)
        chosen[:, 0] |= ~chosen.any(1)  # an example without a question teaches nothing
        kind = torch.from_numpy(draw.random(size))
        other = torch.from_numpy(draw.integers(0, self.mask_id, size))
        hidden = torch.where(kind < 0.8, self.mask_id, torch.where(kind < 0.9, other, ids))
        # What lies behind the end of the text has no next token, and is no token itself.
        asked = torch.where(chosen & (labels != IGNORED), ids, IGNORED)
        return (torch.where(chosen, hidden, ids),), asked
