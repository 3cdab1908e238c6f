"""The networks, in plain PyTorch."""

from .attention import (
    Attention,
    BasicTransformerBlock,
    CrossAttention,
    FeedForward,
    Memory,
    SelfAttention,
    SpatialAttention,
    SpatialTransformer,
    attention_maps,
    group_norm,
    remembering,
)
from .blocks import (
    GSC,
    CrossAttnDownBlock,
    CrossAttnMidBlock,
    CrossAttnUpBlock,
    DownBlock,
    DownSample,
    MidBlock,
    ResNetBlock,
    UpBlock,
    UpSample,
)
from .clip import CLIPText
from .dit import DiT, DiTBlock, FinalLayer, Modulation, PatchEmbedding
from .embeddings import ClassEmbedding, TimeEmbedding, drop_labels, sinusoidal
from .mmdit import JointAttention, JointBlock, MMDiT
from .unet import UNet
from .vae import VAE, Gaussian

__all__ = [
    "GSC", "VAE", "Attention", "BasicTransformerBlock", "CLIPText", "ClassEmbedding", "CrossAttention", "CrossAttnDownBlock",
    "CrossAttnMidBlock", "CrossAttnUpBlock", "DiT", "DiTBlock", "DownBlock", "DownSample", "FeedForward", "FinalLayer",
    "Gaussian", "JointAttention", "JointBlock", "MMDiT", "Memory", "MidBlock", "Modulation", "PatchEmbedding", "ResNetBlock",
    "SelfAttention", "SpatialAttention", "SpatialTransformer", "TimeEmbedding", "UNet", "UpBlock", "UpSample",
    "attention_maps", "drop_labels", "group_norm", "remembering", "sinusoidal",
]  # fmt: skip
