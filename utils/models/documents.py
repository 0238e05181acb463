"""Several documents in one row: where each token stands in its own and which others it sees; knows no model, no text.

B rows of T tokens. `documents` is (B, T) int64: 1, 2, ... = the document of its row that a token belongs to, each of
them one stretch of the row; 0 = padding, which stands only at the end of a row and is treated as one more document.
"""

from typing import Any

import torch
from torch import Tensor


def positions(documents: Tensor) -> Tensor:
    """Where each token stands in its document, from 0: (B, T) int64."""
    place = torch.arange(documents.shape[1], device=documents.device).expand_as(documents)
    begins = torch.ones_like(documents, dtype=torch.bool)
    begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return place - (place * begins).cummax(dim=1).values


def same_document(documents: Tensor) -> Tensor:
    """Which tokens are of one document: (B, 1, T, T) bool, for any number of heads.

    Every token is of one document with itself, padding too: no row of a softmax over it is empty.
    """
    return documents[:, None, :, None] == documents[:, None, None, :]


def check_documents(documents: Tensor, input_ids: Tensor, cache: Any) -> None:
    """Raise ValueError where a model can't keep documents apart: beside a cache, or in another shape than the ids."""
    if cache is not None:
        raise ValueError("documents and a cache do not go together: a cache continues one text, so leave one out")
    if documents.shape != input_ids.shape:
        raise ValueError(
            f"documents has shape {tuple(documents.shape)} and input_ids {tuple(input_ids.shape)}: both are (B, T)"
        )
