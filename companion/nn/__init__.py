"""Layers that several models share: attention and the causal transformer."""

from companion.nn.attention import (
    CausalSelfAttention,
    KeyValueCache,
    attend,
    attention_weights,
    causal_mask,
    merge_heads,
    split_heads,
)
from companion.nn.transformer import CausalTransformer, TransformerConfig

__all__ = [
    "CausalSelfAttention",
    "CausalTransformer",
    "KeyValueCache",
    "TransformerConfig",
    "attend",
    "attention_weights",
    "causal_mask",
    "merge_heads",
    "split_heads",
]
