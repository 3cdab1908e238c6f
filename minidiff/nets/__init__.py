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
from .clip_image import CLIP, CLIPImage, contrastive_loss, zero_shot
from .clip_loss import clip_loss, cuts
from .discriminator import Discriminator, hinge
from .dit import DiT, DiTBlock, FinalLayer, Modulation, PatchEmbedding
from .embeddings import ClassEmbedding, TimeEmbedding, drop_labels, sinusoidal
from .mmdit import JointAttention, JointBlock, MMDiT
from .perturbed_attention import perturbed
from .pixels import Pixels
from .prompt_to_prompt import borrowed_attention
from .unet import UNet
from .vae import VAE, Gaussian

__all__ = [
    "CLIP", "GSC", "VAE", "Attention", "BasicTransformerBlock", "CLIPImage", "CLIPText", "ClassEmbedding", "CrossAttention",
    "CrossAttnDownBlock", "CrossAttnMidBlock", "CrossAttnUpBlock", "DiT", "DiTBlock", "Discriminator", "DownBlock",
    "DownSample", "FeedForward", "FinalLayer", "Gaussian", "JointAttention", "JointBlock", "MMDiT", "Memory", "MidBlock",
    "Modulation", "PatchEmbedding", "Pixels", "ResNetBlock", "SelfAttention", "SpatialAttention", "SpatialTransformer",
    "TimeEmbedding", "UNet", "UpBlock", "UpSample", "attention_maps", "borrowed_attention", "clip_loss",
    "contrastive_loss", "cuts", "drop_labels", "group_norm", "hinge", "perturbed", "remembering", "sinusoidal", "zero_shot",
]  # fmt: skip
