"""The networks, in plain PyTorch."""

from .attention import CrossAttention, SelfAttention, SpatialAttention
from .blocks import GSC, DownSample, ResNetBlock, UpSample
from .embeddings import ClassEmbedding, TimeEmbedding, drop_labels, sinusoidal
from .unet import UNet

__all__ = [
    "GSC", "ClassEmbedding", "CrossAttention", "DownSample", "ResNetBlock", "SelfAttention", "SpatialAttention",
    "TimeEmbedding", "UNet", "UpSample", "drop_labels", "sinusoidal",
]
