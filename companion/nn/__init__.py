"""Layers that several models share: attention and transformers, convolutional encoders and decoders, perceptrons."""

from companion.nn.attention import (
    KeyValueCache,
    SelfAttention,
    attend,
    attention_weights,
    causal_mask,
    merge_heads,
    split_heads,
)
from companion.nn.convolutional import ConvDecoder, ConvEncoder, ResidualDecoder, ResidualEncoder
from companion.nn.layers import (
    Downsample,
    ResidualBlock,
    Upsample,
    he_initialise,
    perceptron,
    scales,
)
from companion.nn.transformer import Block, CausalTransformer, TransformerConfig

__all__ = [
    "Block",
    "CausalTransformer",
    "ConvDecoder",
    "ConvEncoder",
    "Downsample",
    "KeyValueCache",
    "ResidualBlock",
    "ResidualDecoder",
    "ResidualEncoder",
    "SelfAttention",
    "TransformerConfig",
    "Upsample",
    "attend",
    "attention_weights",
    "causal_mask",
    "he_initialise",
    "merge_heads",
    "perceptron",
    "scales",
    "split_heads",
]
