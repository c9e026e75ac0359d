"""Attention between few tokens and the 4096 image positions, projecting the tokens and never the image.

METHOD.md section 6e. A head's weights move to the tokens' side of each product, which then costs 8·T·256·4096
multiply-adds in place of a projection's 256·128·4096: cheaper below T = 16 tokens. Longer prompts take the usual form.
Attention weights are (R, 8, T, 4096) whichever side asks.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from wsisam_model.transformer import HEADS, WIDTH, Attention, join_heads, split_heads

SHORT = 16
"""From this many tokens on, the image is projected."""


def scaled_queries(attention: Attention, tokens: Tensor) -> Tensor:
    """(R, T, 256) -> (R, 8, T, head), divided by the root of the head's width."""
    queries = split_heads(attention.q_proj(tokens))
    return queries / math.sqrt(queries.shape[-1])


def scaled_keys(attention: Attention, tokens: Tensor) -> Tensor:
    """As `scaled_queries`, of keys."""
    keys = split_heads(attention.k_proj(tokens))
    return keys / math.sqrt(keys.shape[-1])


def tokens_to_image(attention: Attention, tokens: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """What `tokens` (R, T, 256) read from the image, (R, T, 256); `keys` K + P and `values` K are (R, 4096, 256)."""
    queries = scaled_queries(attention, tokens)
    if tokens.shape[1] >= SHORT:
        weights = (queries @ split_heads(attention.k_proj(keys)).transpose(2, 3)).softmax(dim=-1)
        return _join(attention, weights @ split_heads(attention.v_proj(values)))
    # The keys' bias shifts all of a query's logits alike and drops out of the softmax.
    absorbed = (queries @ _by_head(attention.k_proj.weight)).flatten(1, 2)
    read = _attended(absorbed, keys, values).reshape(*queries.shape[:3], WIDTH)
    # The values' bias comes once, since a query's weights sum to 1.
    return _join(attention, read @ _by_head(attention.v_proj.weight).transpose(1, 2) + _bias_by_head(attention))


def image_to_token_logits(attention: Attention, image: Tensor, keys: Tensor) -> Tensor:
    """Logits (R, 8, T, 4096) of `image` K + P (R, 4096, 256) asking the tokens `keys` (R, T, 256)."""
    heads = scaled_keys(attention, keys)
    if keys.shape[1] >= SHORT:
        return heads @ split_heads(attention.q_proj(image)).transpose(2, 3)
    absorbed = (heads @ _by_head(attention.q_proj.weight)).flatten(1, 2)
    # The queries' bias differs from token to token: it stays.
    bias = heads @ attention.q_proj.bias.reshape(HEADS, -1, 1)
    return (absorbed @ image.transpose(1, 2)).reshape(*heads.shape[:3], -1) + bias


def update_image(attention: Attention, K: Tensor, logits: Tensor, values: Tensor, key_mask: Tensor | None) -> Tensor:
    """K (R, 4096, 256) plus what the image reads from the tokens `values` (R, T, 256).

    `key_mask` (R, T) is false where a row has no token; None if every row has all of them.
    """
    if key_mask is not None:
        logits = logits.masked_fill(~key_mask[:, None, :, None], -math.inf)
    weights = logits.softmax(dim=2)
    heads = split_heads(attention.v_proj(values))
    if values.shape[1] >= SHORT:
        return K + _join(attention, weights.transpose(2, 3) @ heads)
    # A position's weights sum to 1 in each of the heads, so the bias comes along with the tokens.
    outputs = heads @ attention.out_proj.weight.T.reshape(HEADS, -1, WIDTH) + attention.out_proj.bias / HEADS
    updated: Tensor = torch.baddbmm(K, weights.flatten(1, 2).transpose(1, 2), outputs.flatten(1, 2))
    return updated


def _attended(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """What `queries` (R, n, 256) read from `values` by `keys`, both (R, 4096, 256): (R, n, 256).

    On a CPU the product with the many rows comes first, and the softmax is spelt out so that it divides n × 256 numbers
    and not n × 4096: OpenVINO needs half the time (a sixth of a decode as one block of attention), eager torch four
    fifths.
    """
    if queries.is_cuda:
        return (queries @ keys.transpose(1, 2)).softmax(dim=-1) @ values
    logits = keys @ queries.transpose(1, 2)
    weights = (logits - logits.amax(dim=1, keepdim=True)).exp()
    return weights.transpose(1, 2) @ values / weights.sum(dim=1).unsqueeze(-1)


def _by_head(weight: Tensor) -> Tensor:
    """A projection's weight (128, 256) as (8, 16, 256)."""
    return weight.reshape(HEADS, -1, WIDTH)


def _bias_by_head(attention: Attention) -> Tensor:
    return attention.v_proj.bias.reshape(HEADS, 1, -1)


def _join(attention: Attention, heads: Tensor) -> Tensor:
    joined: Tensor = attention.out_proj(join_heads(heads))
    return joined
