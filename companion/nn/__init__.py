"""Layers that several models share: attention, causal and two-way transformers, convolutional encoder and decoder."""

from typing import TYPE_CHECKING

from companion.faces import make_lazy

if TYPE_CHECKING:
    from companion.nn.attention import (
        CausalSelfAttention,
        KeyValueCache,
        SelfAttention,
        attend,
        attention_weights,
        causal_mask,
        merge_heads,
        split_heads,
    )
    from companion.nn.convolutional import ConvDecoder, ConvEncoder
    from companion.nn.encoder import EncoderBlock
    from companion.nn.transformer import CausalTransformer, TransformerConfig

__all__ = [
    "CausalSelfAttention",
    "CausalTransformer",
    "ConvDecoder",
    "ConvEncoder",
    "EncoderBlock",
    "KeyValueCache",
    "SelfAttention",
    "TransformerConfig",
    "attend",
    "attention_weights",
    "causal_mask",
    "merge_heads",
    "split_heads",
]

make_lazy(__name__)
