"""Pairs of networks, ours and that of diffusers or transformers, with the same random weights, asked the same question.

`PAIRS[name](dtype)` -> (parameters, our answer, their answer). test_pairs.py holds them to a bound, and
`python -m minidiff parity` prints them as a table. Every parameter is random, also those that a new network has at 0 or 1.
"""

import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel, UNet2DConditionModel, UNet2DModel
from diffusers.models import attention, attention_processor as processor, embeddings, normalization, resnet
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.unets import unet_2d_blocks as blocks
from diffusers.utils import logging
from torch import nn
from torch.nn.functional import rms_norm
from transformers import CLIPTextConfig, CLIPTextModel

from minidiff.nets import (
    GSC,
    VAE,
    BasicTransformerBlock,
    CLIPText,
    CrossAttention,
    CrossAttnDownBlock,
    CrossAttnMidBlock,
    CrossAttnUpBlock,
    DiTBlock,
    DownBlock,
    DownSample,
    FeedForward,
    JointBlock,
    MidBlock,
    MMDiT,
    PatchEmbedding,
    ResNetBlock,
    SelfAttention,
    SpatialAttention,
    SpatialTransformer,
    UNet,
    UpBlock,
    UpSample,
)  # fmt: skip
from minidiff.nets.attention import group_norm
from minidiff.pretrained import clip, mmdit, vae
from minidiff.pretrained.loading import fill
from minidiff.pretrained.unet import RULES, options

logging.set_verbosity_error()


def shaken(net, dtype=torch.float32, seed=0):
    """Random numbers in every parameter, also where a new network has zeros or ones."""
    g = torch.Generator().manual_seed(seed)
    for parameter in net.parameters():
        fan = max(parameter[0].numel(), 1) if parameter.ndim > 1 else 16
        with torch.no_grad():
            parameter.add_(torch.randn(parameter.shape, generator=g) / fan**0.5)
    return net.to(dtype).eval()


def rand(*shape, dtype=torch.float32, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def norm(channels):
    return group_norm(channels, 8, 1e-5)


GROUPS = {"resnet_groups": 8, "resnet_eps": 1e-5}
PIECES = {  # theirs; ours; the start of its name inside a whole network, so that the rules of loading apply; inputs
    "GSC": (
        lambda: nn.Sequential(nn.GroupNorm(8, 16), nn.SiLU(), nn.Conv2d(16, 32, 3, padding=1)), lambda: GSC(16, 32, norm),
        "", [(2, 16, 4, 6)], lambda net, x: net(x)),
    "SelfAttention": (
        lambda: processor.Attention(32, heads=4, dim_head=8), lambda: SelfAttention(32, 4),
        "blocks.0.attn1.", [(2, 5, 32)], lambda net, x: net(x)),
    "CrossAttention": (
        lambda: processor.Attention(32, cross_attention_dim=12, heads=4, dim_head=8), lambda: CrossAttention(32, 12, 4),
        "blocks.0.attn2.", [(2, 5, 32), (2, 7, 12)], lambda net, x, c: net(x, c)),
    "FeedForward": (
        lambda: attention.FeedForward(32, activation_fn="geglu"), lambda: FeedForward(32),
        "blocks.0.ff.", [(2, 5, 32)], lambda net, x: net(x)),
    "BasicTransformerBlock": (
        lambda: attention.BasicTransformerBlock(32, 4, 8, cross_attention_dim=12), lambda: BasicTransformerBlock(32, 12, 4),
        "transformer_blocks.0.", [(2, 5, 32), (2, 7, 12)], lambda net, x, c: net(x, encoder_hidden_states=c)),
    "SpatialTransformer": (
        lambda: Transformer2DModel(4, 8, 32, num_layers=2, norm_num_groups=8, cross_attention_dim=12),
        lambda: SpatialTransformer(32, 12, 4, depth=2, groups=8),
        "down_blocks.0.attentions.0.", [(2, 32, 4, 6), (2, 7, 12)], lambda net, x, c: net(x, encoder_hidden_states=c).sample),
    "SpatialTransformer, linear": (
        lambda: Transformer2DModel(4, 8, 32, norm_num_groups=8, cross_attention_dim=12, use_linear_projection=True),
        lambda: SpatialTransformer(32, 12, 4, linear=True, groups=8),
        "down_blocks.0.attentions.0.", [(2, 32, 4, 6), (2, 7, 12)], lambda net, x, c: net(x, encoder_hidden_states=c).sample),
    "SpatialAttention": (
        lambda: processor.Attention(32, heads=4, dim_head=8, bias=True, norm_num_groups=8, eps=1e-5, residual_connection=True),
        lambda: SpatialAttention(32, 4, True, norm), "layers.0.attention.", [(2, 32, 4, 6)], lambda net, x: net(x)),
    "ResNetBlock": (
        lambda: resnet.ResnetBlock2D(in_channels=16, out_channels=32, temb_channels=24, groups=8, eps=1e-5),
        lambda: ResNetBlock(16, 32, 24, norm), "resnet.", [(2, 16, 4, 6), (2, 24)], lambda net, x, e: net(x, e)),
    "DownSample": (
        lambda: resnet.Downsample2D(16, use_conv=True, name="op"), lambda: DownSample(16), "", [(2, 16, 4, 6)],
        lambda net, x: net(x)),
    "DownSample, asymmetric": (
        lambda: resnet.Downsample2D(16, use_conv=True, padding=0, name="op"), lambda: DownSample(16, True), "",
        [(2, 16, 4, 6)], lambda net, x: net(x)),
    "UpSample": (
        lambda: resnet.Upsample2D(16, use_conv=True), lambda: UpSample(16), "", [(2, 16, 4, 6)], lambda net, x: net(x)),
    "DownBlock": (
        lambda: blocks.DownBlock2D(16, 32, 24, num_layers=2, **GROUPS), lambda: DownBlock(16, 32, 24, norm=norm),
        "down_blocks.0.", [(2, 16, 4, 6), (2, 24)], lambda net, x, e: net(x, e)),
    "CrossAttnDownBlock": (
        lambda: blocks.CrossAttnDownBlock2D(16, 32, 24, num_layers=2, **GROUPS, num_attention_heads=4,
                                            cross_attention_dim=12),
        lambda: CrossAttnDownBlock(16, 32, 24, 12, {"heads": 4, "groups": 8}, norm=norm),
        "down_blocks.0.", [(2, 16, 4, 6), (2, 24), (2, 7, 12)], lambda net, x, e, c: net(x, e, c)),
    "MidBlock": (
        lambda: blocks.UNetMidBlock2D(32, 24, **GROUPS, attention_head_dim=8),
        lambda: MidBlock(32, 24, lambda: SpatialAttention(32, 4, True, norm), norm),
        "mid_block.", [(2, 32, 4, 6), (2, 24)], lambda net, x, e: net(x, e)),
    "CrossAttnMidBlock": (
        lambda: blocks.UNetMidBlock2DCrossAttn(32, 24, **GROUPS, num_attention_heads=4, cross_attention_dim=12),
        lambda: CrossAttnMidBlock(32, 24, 12, {"heads": 4, "groups": 8}, norm=norm),
        "mid_block.", [(2, 32, 4, 6), (2, 24), (2, 7, 12)], None),
    "UpBlock": (
        lambda: blocks.UpBlock2D(16, 48, 32, 24, num_layers=2, **GROUPS),
        lambda: UpBlock(48, [32, 16], 32, 24, norm=norm),
        "up_blocks.0.", [(2, 48, 4, 6), (2, 32, 4, 6), (2, 16, 4, 6), (2, 24)], None),
    "CrossAttnUpBlock": (
        lambda: blocks.CrossAttnUpBlock2D(16, 32, 48, 24, num_layers=2, **GROUPS, num_attention_heads=4,
                                          cross_attention_dim=12),
        lambda: CrossAttnUpBlock(48, [32, 16], 32, 24, 12, {"heads": 4, "groups": 8}, norm=norm),
        "up_blocks.0.", [(2, 48, 4, 6), (2, 32, 4, 6), (2, 16, 4, 6), (2, 24), (2, 7, 12)], None),
}  # fmt: skip




INSIDE = {  # where the rules take those beginnings
    "": "", "blocks.0.attn1.": "blocks.0.self_attention.", "blocks.0.attn2.": "blocks.0.cross_attention.",
    "blocks.0.ff.": "blocks.0.feed_forward.", "transformer_blocks.0.": "transformer_blocks.0.", "resnet.": "resnet.",
    "layers.0.attention.": "layers.0.attention.", "mid_block.": "mid.", "down_blocks.0.": "down.0.", "up_blocks.0.": "up.0.",
    "down_blocks.0.attentions.0.": "down.0.layers.0.attention.",
}  # fmt: skip


def piece(name):
    build_theirs, build_ours, prefix, shapes, call = PIECES[name]

    def answers(dtype):
        theirs, ours = shaken(build_theirs(), dtype), build_ours().eval()
        fill(ours, theirs.state_dict(), [(r"^", prefix), *RULES, (f"^{INSIDE[prefix]}", "")], name)
        inputs = [rand(*shape, dtype=dtype, seed=i) for i, shape in enumerate(shapes)]
        if name == "CrossAttnMidBlock":
            wanted, got = theirs(*inputs[:2], encoder_hidden_states=inputs[2]), ours(*inputs)
        elif "UpBlock" in name:
            x, early, late, emb, *context = inputs  # the way up meets the last map of the way down first
            told = {"encoder_hidden_states": context[0]} if context else {}
            wanted, got = theirs(x, (late, early), emb, **told), ours(x, [late, early], emb, *context)
        else:
            wanted, got = call(theirs, *inputs), ours(*inputs)
        return count(ours), flat(got), flat(wanted)

    return torch.no_grad()(answers)


def count(net):
    return sum(p.numel() for p in net.parameters())


def flat(answer):
    """One row of numbers out of a tensor, or of a tensor and the maps beside it."""
    if torch.is_tensor(answer):
        return answer.flatten()
    return torch.cat([flat(part) for part in answer])


SMALL = {"block_out_channels": (16, 32), "layers_per_block": 2, "norm_num_groups": 8}
READS = {**SMALL, "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "cross_attention_dim": 12,
         "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")}  # fmt: skip
PIXELS = {**SMALL, "down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
UNETS = {
    "U-Net of Stable Diffusion 1": (UNet2DConditionModel, {**READS, "attention_head_dim": 4}),
    "U-Net of Stable Diffusion 2": (UNet2DConditionModel, {**READS, "attention_head_dim": (2, 4),
                                                           "use_linear_projection": True}),
    "U-Net for inpainting": (UNet2DConditionModel, {**READS, "attention_head_dim": 4, "in_channels": 9}),
    "U-Net that knows depth": (UNet2DConditionModel, {**READS, "attention_head_dim": (2, 4), "in_channels": 5,
                                                      "use_linear_projection": True}),
    "U-Net on pixels": (UNet2DModel, PIXELS),
    "U-Net on pixels, with classes": (UNet2DModel, {**PIXELS, "num_class_embeds": 10}),
    "U-Net of Google's DDPM": (UNet2DModel, {**PIXELS, "freq_shift": 1, "flip_sin_to_cos": False, "downsample_padding": 0,
                                            "attention_head_dim": None, "norm_eps": 1e-6}),
    "U-Net on pixels, no attention below": (UNet2DModel, {**PIXELS, "add_attention": False}),
}  # fmt: skip


def ask(theirs, ours, dtype):
    """Both networks' answers to the same noisy images, timesteps and whatever else they take."""
    height = 7 if ours.config["context_dim"] else 8  # 480x640 pixels are 60x80 latents, which three halvings do not divide
    x, t = rand(2, ours.config["in_channels"], height, 12, dtype=dtype), torch.tensor([7, 801])
    if ours.config["context_dim"]:
        context = rand(2, 5, ours.config["context_dim"], dtype=dtype, seed=2)
        return ours(x, t, context=context), theirs(x, t, context).sample
    if ours.config["num_classes"]:
        return ours(x, t, y=torch.tensor([3, 9])), theirs(x, t, class_labels=torch.tensor([3, 9])).sample
    return ours(x, t), theirs(x, t).sample


def whole(name):
    build, config = UNETS[name]

    def answers(dtype):
        theirs = shaken(build(**config), dtype)
        ours = UNet(**options({**theirs.config, "_class_name": build.__name__})).eval()
        fill(ours, theirs.state_dict(), RULES, name)
        return count(ours), *ask(theirs, ours, dtype)

    return torch.no_grad()(answers)


VAES = {
    "VAE of Stable Diffusion": {},
    "VAE of SD3": {"latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False},
}
TEXTS = {
    "Text encoder of Stable Diffusion 1": {"hidden_act": "quick_gelu", "eos_token_id": 2},
    "Text encoder of Stable Diffusion 2": {"hidden_act": "gelu", "eos_token_id": 59},
}


def autoencoder(name):
    config = {"block_out_channels": (16, 32), "layers_per_block": 2, "norm_num_groups": 8, **VAES[name],
              "down_block_types": 2 * ("DownEncoderBlock2D",), "up_block_types": 2 * ("UpDecoderBlock2D",)}  # fmt: skip

    def answers(dtype):
        theirs = shaken(AutoencoderKL(**config), dtype)
        ours = VAE(**vae.options(dict(theirs.config))).eval()
        fill(ours, theirs.state_dict(), vae.RULES, name)
        x, z = rand(2, 3, 16, 24, dtype=dtype), rand(2, ours.config["latent_channels"], 8, 12, dtype=dtype)
        mine, posterior = ours.encode(x), theirs.encode(x).latent_dist
        wanted = flat((posterior.mean, posterior.std, theirs.decode(z).sample))
        return count(ours), flat((mine.mean, mine.std, ours.decode(z))), wanted

    return torch.no_grad()(answers)


def text_encoder(name):
    sizes = {"vocab_size": 60, "max_position_embeddings": 11, "hidden_size": 32, "intermediate_size": 64,
             "num_hidden_layers": 3, "num_attention_heads": 4, "projection_dim": 24, "bos_token_id": 58}  # fmt: skip

    def answers(dtype):
        theirs = shaken(CLIPTextModel(CLIPTextConfig(**sizes, **TEXTS[name])), dtype)
        ours = CLIPText(**clip.options({**theirs.config.to_dict(), "architectures": ["CLIPTextModel"]})).eval()
        fill(ours, theirs.state_dict(), clip.RULES, name)
        ids = torch.tensor([[58, 3, 14, 15, 59, 59, 59, 59, 59, 59, 59], [58, 9, 2, 6, 5, 3, 5, 8, 9, 7, 59]])
        mine, wanted = ours(ids), theirs(ids)
        return count(ours), flat(mine), flat((wanted.last_hidden_state, wanted.pooler_output))

    return torch.no_grad()(answers)


def in_full(net, dtype):
    """Their RMSNorm takes its mean in float32 whatever it is given; in float64 it is to be compared with itself in float64."""
    for norm in net.modules():
        if isinstance(norm, normalization.RMSNorm) and dtype == torch.float64:
            norm.forward = lambda x, norm=norm: rms_norm(x, norm.dim, norm.weight, norm.eps)
    return net


def take(ours, theirs, depth, name, prefix="", inside=""):
    """Their weights, by the rules that load_mmdit has for a whole network of that depth."""
    tensors = {prefix + key: tensor for key, tensor in theirs.state_dict().items()}
    mmdit.adapt(tensors, depth)
    return fill(ours.eval(), tensors, [*mmdit.RULES, (f"^{inside}", "")], name)


JOINT = {  # their block's options; ours
    "JointBlock": ({}, {}),
    "JointBlock, q and k normed": ({"qk_norm": "rms_norm"}, {"qk_norm": True}),
    "JointBlock, two attentions": ({"qk_norm": "rms_norm", "use_dual_attention": True}, {"qk_norm": True, "dual": True}),
    "JointBlock, the last": ({"context_pre_only": True}, {"last": True}),
}


def joint_block(name):
    options, small_print = JOINT[name]

    def answers(dtype):
        theirs = in_full(shaken(attention.JointTransformerBlock(32, 4, 8, **options), dtype), dtype)
        ours = JointBlock(32, 4, **small_print)
        take(ours, theirs, 1 if "last" in small_print else 2, name, "transformer_blocks.0.", "blocks.0.")
        image, text, emb = (rand(*shape, dtype=dtype, seed=i) for i, shape in enumerate([(2, 6, 32), (2, 5, 32), (2, 32)]))
        pairs = zip(ours(image, text, emb), theirs(image, text, emb)[::-1], strict=True)  # they name the text first
        mine, wanted = zip(*[pair for pair in pairs if pair != (None, None)], strict=True)
        return count(ours), flat(mine), flat(wanted)

    return torch.no_grad()(answers)


@torch.no_grad()
def dit_block(dtype):
    """Their block embeds time and class itself."""
    theirs = shaken(attention.BasicTransformerBlock(
        32, 4, 8, activation_fn="gelu-approximate", num_embeds_ada_norm=10, attention_bias=True, norm_type="ada_norm_zero",
        norm_elementwise_affine=False, norm_eps=1e-6), dtype)  # fmt: skip
    x, t, y, ours = rand(2, 6, 32, dtype=dtype), torch.tensor([7, 801]), torch.tensor([3, 9]), DiTBlock(32, 4).eval()
    rules = [("^norm1.emb", None), ("^norm1", "modulation"), ("^attn1", "attention"), ("to_out.0", "to_out"),
             ("^ff.net.0.proj", "mlp.0"), ("^ff.net.2", "mlp.2")]  # fmt: skip
    fill(ours, theirs.state_dict(), rules, "DiTBlock")
    emb = theirs.norm1.emb(t, y, hidden_dtype=dtype)
    return count(ours), ours(x, emb).flatten(), theirs(x, timestep=t, class_labels=y).flatten()


@torch.no_grad()
def patches(dtype):
    theirs = shaken(embeddings.PatchEmbed(8, 8, 2, 4, 32, pos_embed_max_size=12), dtype)
    ours, x = PatchEmbedding(4, 32, patch=2, size=24), rand(2, 4, 6, 10, dtype=dtype)
    take(ours, theirs, 1, "PatchEmbedding", "pos_embed.", "embed.")
    return count(ours), ours(x).flatten(), theirs(x).flatten()


MMDITS = {
    "MMDiT of SD3": {},
    "MMDiT of SD 3.5": {"qk_norm": "rms_norm", "dual_attention_layers": (0, 1)},
}
SMALL_MMDIT = {"sample_size": 8, "in_channels": 4, "out_channels": 4, "num_layers": 3, "num_attention_heads": 4,
               "attention_head_dim": 8, "caption_projection_dim": 32, "joint_attention_dim": 12, "pooled_projection_dim": 10,
               "pos_embed_max_size": 12}  # fmt: skip


def transformer(name):
    def answers(dtype):
        theirs = in_full(shaken(SD3Transformer2DModel(**SMALL_MMDIT, **MMDITS[name]), dtype), dtype)
        ours = MMDiT(**mmdit.options(dict(theirs.config)))
        take(ours, theirs, 3, name)
        shapes = (2, 4, 6, 10), (2, 5, 12), (2, 10)
        x, context, pooled = (rand(*shape, dtype=dtype, seed=i) for i, shape in enumerate(shapes))
        t = torch.tensor([7, 801])
        return count(ours), ours(x, t, context, pooled), theirs(x, context, pooled, t).sample

    return torch.no_grad()(answers)


PAIRS = {
    **{name: piece(name) for name in PIECES},
    **{name: whole(name) for name in UNETS},
    **{name: autoencoder(name) for name in VAES},
    **{name: text_encoder(name) for name in TEXTS},
    "PatchEmbedding, cropped": patches,
    "DiTBlock": dit_block,
    **{name: joint_block(name) for name in JOINT},
    **{name: transformer(name) for name in MMDITS},
}
