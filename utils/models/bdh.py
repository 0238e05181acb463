"""BDH, the Dragon Hatchling: wide sparse neurons, linear attention; knows nothing of text, losses or sampling.

B = batch, T = tokens, D = n_embd, H = n_head, N = neurons per head, V = vocab_size. Heads come first in every
shape: each product is then one batched product over H, and no weight is copied for it.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from utils.config.schema import ModelShape
from utils.models.bdh_state import BDHState
from utils.models.documents import check_documents, positions

INIT_STD = 0.02
NEURONS_PER_CHANNEL = 128
ROPE_THETA = 65536.0
SHORTEST_CHUNK = 256
FEW = 0.1  # share of neurons up to which picking the rows of active ones beats reading all rows (measured on a CPU)

Rotation = tuple[Tensor, Tensor]  # cosine and sine


class Apart(NamedTuple):
    """What keeps the documents of a chunk apart from one another, and from those of the chunk before."""

    place: Tensor
    """(B, T): where each token stands in its document."""
    same: Tensor
    """(B, T, T): whether two tokens are of one document."""
    carried: Tensor
    """(B, T, 1): whether a token's document began before this chunk: only then is the state so far of it."""
    last: Tensor
    """(B, T, 1): whether it is the chunk's last document, the only one that a later chunk can go on with."""
    stays: Tensor
    """(B, 1, 1): whether that one began before this chunk, so that the state so far is part of the next."""


def chunks_apart(documents: Tensor, size: int) -> list[Apart]:
    """The documents (B, T) of a row in chunks of `size` tokens."""
    before, found = torch.full_like(documents[:, :1], -1), []
    for place, here in zip(positions(documents).split(size, 1), documents.split(size, 1), strict=True):
        last, carried = here[:, -1:], here == before
        same = here[:, :, None] == here[:, None]
        found.append(Apart(place, same, carried[..., None], (here == last)[..., None], (last == before)[..., None]))
        before = last
    return found


def rotary_phases(n_neuron: int, start: int, length: int, device: torch.device) -> Tensor:
    """Angles of positions start ... start + length - 1, one per pair of neurons: (T, N/2), in radians, fp32.

    Always fp32, in this order of operations, as the published code has it: the phase of a late position carries
    the rounding of t x f (about 1e-7 t radians), and a model is trained with exactly that rounding. Pair i turns
    by 65536^(-2i / N) per token.
    """
    even = torch.arange(0, n_neuron, 2, dtype=torch.float32, device=device)
    frequency = 1.0 / ROPE_THETA ** (even / n_neuron) / (2 * math.pi)  # turns per token
    position = torch.arange(start, start + length, dtype=torch.float32, device=device)
    return torch.outer(position, frequency) % 1 * (2 * math.pi)


def rotate(u: Tensor, rotation: Rotation) -> Tensor:
    """Turn neighbours 2i and 2i + 1 by their angle: u1 cos - u2 sin, u2 cos + u1 sin."""
    cos, sin = rotation  # (T, N/2) each, or (B, T, N/2)
    u1, u2 = u[..., ::2], u[..., 1::2]
    return torch.stack((u1 * cos - u2 * sin, u2 * cos + u1 * sin), dim=-1).flatten(-2).type_as(u)


def norm(x: Tensor) -> Tensor:
    """LayerNorm without gain or bias."""
    return F.layer_norm(x, x.shape[-1:])


class BDH(nn.Module):
    """BDH-GPU (Kosowski et al. 2025, "The Dragon Hatchling", https://arxiv.org/abs/2509.26507).

    Every layer uses the same weights. Names and shapes of the weights are the published ones, so published state
    dicts load as they are. `shape.n_hidden` counts the neurons of all heads, H x N; 0 means 128 x n_embd, as
    published. `n_kv_head` and `tie_embeddings` have no meaning here.

    There is no longest text: `block_size` is only the length that training uses.
    """

    task = "causal"
    packs_documents = True
    unbounded = True
    checkpointing = False  # whether layers of short texts, too, are computed again in the backward pass, in training

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        n_hidden = shape.n_hidden or NEURONS_PER_CHANNEL * shape.n_embd
        assert n_hidden % (2 * shape.n_head) == 0, "each head needs the same, even number of neurons"
        H, D, N = shape.n_head, shape.n_embd, n_hidden // shape.n_head
        self.shape, self.n_neuron = shape, N
        # A token costs C N for the pairs of a chunk of C, and 2 D N for the state: at C = 2 D neither rules, and a
        # whole text is cheaper as one chunk up to 4 D.
        self.chunk = max(SHORTEST_CHUNK, 2 * D)
        self.embed = nn.Embedding(shape.vocab_size, D)
        self.encoder = nn.Parameter(torch.empty(H, D, N))
        self.encoder_v = nn.Parameter(torch.empty(H, D, N))
        self.decoder = nn.Parameter(torch.empty(H * N, D))
        self.lm_head = nn.Parameter(torch.empty(D, shape.vocab_size))
        for p in self.parameters():
            nn.init.normal_(p, std=INIT_STD)
        self.register_load_state_dict_pre_hook(_drop_frequencies)

    def flops_per_token(self) -> int:
        """Operations of a forward and a backward pass per token; the sums over the text in their fixed-size form.

        Every layer uses the same three matrices, so they count once per layer.
        """
        D, neurons = self.shape.n_embd, self.decoder.shape[0]
        per_layer = 3 * D * neurons + 2 * D * neurons  # encoder, encoder_v, decoder; reading and adding to the state
        return 6 * (self.shape.n_layer * per_layer + D * self.shape.vocab_size)

    def new_cache(self, batch: int = 1) -> BDHState:
        """An empty state for `batch` texts, on the model's device."""
        H, D, _ = self.encoder.shape
        return BDHState(self.shape.n_layer, batch, H, self.n_neuron, D, self.encoder.dtype, self.encoder.device)

    def forward(self, input_ids: Tensor, cache: BDHState | None = None, documents: Tensor | None = None) -> Tensor:
        """Score every possible next token after every token.

        `input_ids` is (B, T) int64 of any length; the result is (B, T, V), unnormalised log-probabilities.

        A `cache` (from `new_cache`) holds the sums of `cache.length` earlier tokens, which `input_ids` continue;
        these tokens are added to it. A text longer than a chunk is read chunk by chunk with such a state between
        them, so memory grows with T, not with its square.

        `documents`, (B, T) as in `utils/models/documents.py`, keeps the documents of a row apart: each is scored as if
        it stood alone. Not together with a cache (ValueError).
        """
        chunks, apart = input_ids.split(self.chunk, dim=1), None
        if documents is not None:
            check_documents(documents, input_ids, cache)
            apart = chunks_apart(documents, self.chunk)
        if cache is None and len(chunks) > 1:
            cache = self.new_cache(len(input_ids))
        # What a layer computes is some 20 times wider than the state it starts from: of a long text only the states
        # are kept for the backward pass, and the layers computed again.
        again = (len(chunks) > 1 or (self.checkpointing and self.training)) and torch.is_grad_enabled()
        read = [self._read(chunk, cache, again, apart and apart[i]) for i, chunk in enumerate(chunks)]
        return torch.cat(read, dim=1)  # (B, T, V)

    def _read(self, input_ids: Tensor, cache: BDHState | None, again: bool, apart: Apart | None) -> Tensor:
        start, length = 0 if cache is None else cache.length, input_ids.shape[1]
        if apart is None:
            rotation = self.rotation(start, length)
        else:  # places of tokens that read on are beyond the chunk's length
            cos, sin = self.rotation(0, start + length)
            rotation = cos[apart.place], sin[apart.place]  # (B, T, N/2) each
        x = norm(self.embed(input_ids))  # (B, T, D)
        for layer in range(self.shape.n_layer):
            state = None if cache is None else cache.sums[layer]
            if again:
                x, state = checkpoint(self._layer, x, rotation, state, start == 0, apart, use_reentrant=False)
            else:
                x, state = self._layer(x, rotation, state, start == 0, apart)
            if cache is not None:
                cache.sums[layer] = state
        if cache is not None:
            cache.advance(length)
        return x @ self.lm_head  # (B, T, V)

    def _layer(
        self, x: Tensor, rotation: Rotation, state: Tensor | None, first: bool, apart: Apart | None
    ) -> tuple[Tensor, Tensor | None]:
        u, y, state = self.neurons(x, rotation, state, first, apart)
        return self.mix(x, u, y), state

    def rotation(self, start: int, length: int) -> Rotation:
        """Cosine and sine of `length` positions from `start`, (T, N/2) each, at least in fp32."""
        phases = rotary_phases(self.n_neuron, start, length, self.encoder.device)
        if self.encoder.dtype == torch.float64:
            phases = phases.double()
        return phases.cos(), phases.sin()

    def neurons(
        self, x: Tensor, rotation: Rotation, state: Tensor | None, first: bool, apart: Apart | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """What the neurons of a layer say, (H, B, T, N) each: u of the token, y of what it gathered.

        `x` is (B, T, D), `state` the layer's sums so far (None: nothing came before and nothing follows), which
        are zero on the `first` tokens. The third result are the sums with these tokens.
        """
        u = F.relu(self._per_head(x.expand(self.shape.n_head, -1, -1, -1), self.encoder))
        a, state = gather(rotate(u, rotation), x, state, first, apart)  # (H, B, T, D)
        y = F.relu(self._per_head(norm(a).type_as(x), self.encoder_v))
        return u, y, state

    def mix(self, x: Tensor, u: Tensor, y: Tensor) -> Tensor:
        """The layer's output (B, T, D): where both u and y are active, a neuron writes into the residual stream."""
        z = F.dropout(u * y, self.shape.dropout, self.training)  # (H, B, T, N)
        if few_active(z):
            active = z.flatten().nonzero().squeeze(1)
            out = z.flatten()[active] @ self.decoder[active]
        else:
            out = self._per_head(z, self.decoder.view(self.shape.n_head, self.n_neuron, -1)).sum(dim=0)
        return norm(x + norm(out))

    @staticmethod
    def _per_head(x: Tensor, weight: Tensor) -> Tensor:
        return torch.bmm(x.flatten(1, 2), weight).unflatten(1, x.shape[1:3])


def _drop_frequencies(_: nn.Module, weights: dict[str, Tensor], prefix: str, *__: object) -> None:
    # Published files may hold the table of frequencies, too, which a formula gives.
    weights.pop(prefix + "attn.freqs", None)


def gather(
    q: Tensor, x: Tensor, state: Tensor | None, first: bool, apart: Apart | None = None
) -> tuple[Tensor, Tensor | None]:
    """Each token's sum of (q_t . q_s) x_s over all s before it, (H, B, T, D), and the state with these tokens.

    Within these tokens that is the sum itself; earlier ones come in through `state` (H, B, N, D), the sum of
    q_s (outer) x_s. No softmax and no scale, and queries are keys, so both ways give the same. With `apart` the sums
    are over the token's own document, and the state is of the last one.
    """
    H, _, T, _ = q.shape
    values = x.expand(H, -1, -1, -1)
    a = torch.zeros((), dtype=x.dtype, device=x.device).expand(values.shape)
    if T > 1:
        scores = (q @ q.mT).tril(-1)  # (H, B, T, T)
        scores = scores if apart is None else scores * apart.same
        a = scores.type_as(q) @ values.type_as(q)  # (H, B, T, D)
    if state is None:
        return a, None
    if apart is not None:
        a = a if first else a + (q.type_as(state) @ state) * apart.carried
        return a, state * apart.stays + q.mT @ (values * apart.last).type_as(q)
    if torch.is_grad_enabled():
        # Added outside the product: under autocast the product is in half precision, the sum never.
        a = a if first else a + q.type_as(state) @ state
        return a, state + q.mT @ values.type_as(q)
    q, values = q.type_as(state), values.type_as(state)
    if few_active(q):
        return gather_few(q, values[0, 0], state), state
    if not first:
        a = a + q @ state
    state.flatten(0, 1).baddbmm_(q.mT.flatten(0, 1), values.flatten(0, 1))
    return a, state


def few_active(neurons: Tensor) -> bool:
    """Whether to touch only rows of active neurons: one token of one text, not in training, on a CPU."""
    H, B, T, N = neurons.shape
    if B * T > 1 or torch.is_grad_enabled() or neurons.device.type != "cpu":
        return False
    return int(neurons.count_nonzero()) < FEW * H * N


def gather_few(q: Tensor, x: Tensor, state: Tensor) -> Tensor:
    """`gather` of one token, q (H, 1, 1, N) and x (1, D), that reads and writes only the active neurons' rows."""
    gathered = []
    for strength, rows in zip(q[:, 0, 0], state[:, 0], strict=True):  # (N), (N, D)
        active = strength.nonzero().squeeze(1)
        strength = strength[active]
        gathered.append(strength @ rows[active])
        rows.index_add_(0, active, torch.outer(strength, x[0]))
    return torch.stack(gathered)[:, None, None]  # (H, 1, 1, D)
