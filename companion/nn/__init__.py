"""Layers that several models share: attention, the causal transformer, convolutional encoder and decoder."""

from companion.nn.attention import (
    CausalSelfAttention,
    KeyValueCache,
    attend,
    attention_weights,
    causal_mask,
    merge_heads,
    split_heads,
)
from companion.nn.convolutional import ConvDecoder, ConvEncoder
from companion.nn.transformer import CausalTransformer, TransformerConfig

__all__ = [
    "CausalSelfAttention",
    "CausalTransformer",
    "ConvDecoder",
    "ConvEncoder",
    "KeyValueCache",
    "TransformerConfig",
    "attend",
    "attention_weights",
    "causal_mask",
    "merge_heads",
    "split_heads",
]
