"""Stable Diffusion 3 as a whole, tiny and in memory: what holds whatever the weights are."""

from itertools import pairwise

import pytest
import torch
from huggingface_hub.utils import filter_repo_objects

import minidiff as md
from minidiff.pretrained import Tokenizer, read_scheduler
from minidiff.pretrained.folders import find

SD3 = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}
PROMPTS = ["a red circle", "a blue square"]


def tiny():
    torch.manual_seed(0)
    mmdit = md.MMDiT(16, 16, size=24, dim=32, depth=2, heads=2, context_dim=64, pooled_dim=36)
    vae = md.VAE(channels=(16, 32), latent_channels=16, layers=1, groups=None, quant_conv=False, scale=1.5305, shift=0.0609)
    first, second = (md.CLIPText(dim=dim, layers=2, heads=2, projection=projection) for dim, projection in ((24, 16), (32, 20)))
    for net, std in ((mmdit, 0.1), (vae, 0.1)):
        for parameter in net.parameters():  # what starts at zero would hide everything before it
            if parameter.abs().max() == 0:
                torch.nn.init.normal_(parameter, std=std)
    nets = [net.eval() for net in (mmdit, vae, first, second)]
    pipe = md.StableDiffusion3(*nets, Tokenizer.clip(), Tokenizer.clip(pad="!"), read_scheduler(SD3), size=16)
    pipe.progress = False
    return pipe


@pytest.fixture(scope="module")
def pipe():
    return tiny()


@pytest.fixture
def image():
    return torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


def seeded(seed=3):
    return torch.Generator().manual_seed(seed)


def noise(n=1):
    return torch.randn(n, 16, 8, 8, generator=seeded())


def test_a_picture_for_each_prompt(pipe):
    images = pipe(PROMPTS, steps=4, generator=seeded())
    assert images.shape == (2, 3, 16, 16)
    assert images.abs().max() <= 1
    torch.testing.assert_close(images, pipe(PROMPTS, steps=4, generator=seeded()), rtol=0, atol=0)
    assert not torch.allclose(images, pipe(PROMPTS, steps=4, generator=seeded(4)))
    alone = pipe(PROMPTS[1], steps=4, latents=noise(2)[1:])
    torch.testing.assert_close(pipe(PROMPTS, steps=4, latents=noise(2))[1:], alone, rtol=1e-3, atol=1e-4)
    assert pipe("a", steps=2, height=24, width=40).shape == (1, 3, 24, 40)
    assert len(list(pipe.walk("a"))) == 28  # its own number of steps, and its own guidance
    torch.testing.assert_close(pipe("a", latents=noise()), pipe("a", steps=28, guidance_scale=7.0, latents=noise()))


@torch.no_grad()
def test_what_the_prompts_become(pipe):
    """Both encoders side by side, zeros up to the width of T5, and zeros where T5 would speak."""
    said = pipe.encode_text(PROMPTS)
    assert said.tokens.shape == (2, 77 + 256, 64)
    assert said.pooled.shape == (2, 36)
    for ids, net, columns, part in (
        (pipe.tokenizer(PROMPTS), pipe.text_encoder, slice(0, 24), slice(0, 16)),
        (pipe.tokenizer_2(PROMPTS), pipe.text_encoder_2, slice(24, 56), slice(16, 36)),
    ):
        x = net.tokens(ids) + net.positions
        torch.testing.assert_close(said.tokens[:, :77, columns], net.layers[0](x))  # of two layers: the penultimate, as it is
        torch.testing.assert_close(said.pooled[:, part], net(ids).pooled)
    assert (said.tokens[:, :77, 56:] == 0).all() and (said.tokens[:, 77:] == 0).all()
    torch.testing.assert_close(pipe.encode_text(PROMPTS[1]).tokens, said.tokens[1:], rtol=1e-4, atol=1e-5)


def test_the_loop_by_hand(pipe):
    """What the pipeline does is no more than this."""
    said, empty, x = pipe.encode_text("a red circle"), pipe.encode_text(""), noise()
    even = torch.linspace(1, 3 / 1002, 6, dtype=torch.float64)
    sigmas = [*(3 * even / (1 + 2 * even)).tolist(), 0]
    for here, there in pairwise(sigmas):
        with torch.no_grad():
            with_prompt, without = (pipe.mmdit(x, torch.tensor([1000 * here]), context=c.tokens, pooled=c.pooled)
                                    for c in (said, empty))  # fmt: skip
        x = x + (there - here) * (without + 7.0 * (with_prompt - without))
    wanted = pipe.vae.decode(x / 1.5305 + 0.0609).clamp(-1, 1).detach()
    torch.testing.assert_close(pipe("a red circle", steps=6, latents=noise()), wanted, rtol=1e-3, atol=1e-4)


def test_guidance_and_the_negative_prompt(pipe):
    def draw(prompt="a red circle", **options):
        return pipe(prompt, steps=3, latents=noise(), **options)

    plain = draw(guidance_scale=1.0)
    torch.testing.assert_close(plain, draw(guidance_scale=1.0, negative_prompt="blurry"))  # scale 1 asks no negative
    torch.testing.assert_close(draw(guidance_scale=0.0), draw("", guidance_scale=1.0), rtol=1e-3, atol=1e-4)
    same = draw(negative_prompt="a red circle")  # nothing to steer away from
    torch.testing.assert_close(same, plain, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(draw(), draw(negative_prompt="blurry"), atol=1e-4)


@pytest.mark.parametrize("sampler", [md.ddpm, md.ddim, md.euler, md.heun, md.lms, md.plms, md.dpmpp_2m])
def test_any_sampler_walks(pipe, sampler):
    images = pipe("a red circle", steps=4, generator=seeded(), sampler=sampler)
    assert images.isfinite().all()
    torch.testing.assert_close(images, pipe("a red circle", steps=4, generator=seeded(), sampler=sampler))


def test_img2img_from_nothing_to_everything(pipe, image):
    back = pipe.decode(pipe.encode(image, seeded()))
    torch.testing.assert_close(pipe.img2img("a", image, strength=0.0, steps=10, generator=seeded()), back)
    far = [(pipe.img2img("a", image, strength=s, steps=10, guidance_scale=1.0, generator=seeded()) - back).abs().mean()
           for s in (0.1, 0.4, 1.0)]  # fmt: skip
    assert far[0] < far[1] < far[2]
    black, white = (pipe.img2img("a", torch.full_like(image, value), strength=1.0, steps=3, generator=seeded())
                    for value in (-1, 1))  # fmt: skip
    torch.testing.assert_close(black, white)  # a flow starts from noise alone: at 1 nothing of the picture is left
    assert pipe.img2img(PROMPTS, image, strength=0.5, steps=4, generator=seeded()).shape == (2, 3, 16, 16)


@pytest.mark.parametrize("sampler", [None, md.heun, md.dpmpp_2m])
def test_inpainting_keeps_what_is_known(pipe, image, sampler, monkeypatch):
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 8:] = 1
    z, keep = pipe.encode(image, seeded()), {}
    with monkeypatch.context() as patch:
        patch.setattr(pipe, "decode", lambda latents: keep.setdefault("z", latents))
        pipe.inpaint("a", image, mask, steps=5, generator=seeded(), sampler=sampler, paste=False)
    torch.testing.assert_close(keep["z"][..., :4], z[..., :4])
    assert (keep["z"][..., 4:] - z[..., 4:]).abs().mean() > 0.1
    nothing = pipe.inpaint("a", image, torch.zeros(1, 1, 16, 16), steps=5, generator=seeded(), paste=False)
    torch.testing.assert_close(nothing, pipe.decode(z), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("strength", [1.0, 0.5, 0.0])
def test_outside_of_the_mask_every_pixel_is_the_originals(pipe, image, strength):
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 3:, 5:] = 1
    drawn, plain = (pipe.inpaint("a", image, mask, strength, seeded(), paste, steps=4) for paste in (True, False))
    new = mask.expand_as(image) > 0
    assert drawn[~new].equal(image[~new]) and drawn[new].equal(plain[new])
    assert (plain - image)[~new].abs().mean() > 1e-3
    assert pipe.inpaint("a", image, 0 * mask, strength, steps=4).equal(image)
    white = [pipe.inpaint("a", picture, torch.ones_like(mask), 1.0, seeded(), steps=4) for picture in (image, -image)]
    torch.testing.assert_close(*white)  # all of it new, and a flow starts from noise alone: nothing is left of the picture


class Bell(torch.nn.Module):
    """A network that knows its data: latents from a normal distribution around a mean that the prompt decides."""

    config, stride = {"in_channels": 16, "context_dim": 64}, 2

    def __init__(self, schedule):
        super().__init__()
        self.schedule, self.weight = schedule, torch.nn.Parameter(torch.ones(1))

    def forward(self, x, t, context, pooled):
        (alpha, sigma), mean = self.schedule.at(t).like(x), pooled[:, 0].view(-1, 1, 1, 1)
        return (sigma - alpha) * (x - alpha * mean) / (alpha**2 + sigma**2) - mean  # eps - x0, as far as x tells


@pytest.fixture
def bell(pipe, image, monkeypatch):
    monkeypatch.setattr(pipe, "mmdit", Bell(pipe.schedule))
    monkeypatch.setattr(pipe.vae, "scale", pipe.vae.scale / pipe.encode(image, sample=False).std().item())
    return pipe


def test_inversion_comes_back_and_converges(bell, image):
    z, far = bell.encode(image, sample=False), []
    for steps in (10, 40, 160):
        latents = bell.invert(image, "a", steps=steps)
        *_, last = bell.walk("a", steps=steps, latents=latents, guidance_scale=1.0, sampler=md.ddim)
        far.append((last.x - z).abs().mean().item() / z.abs().mean().item())
    assert far[0] < 0.4
    assert far[1] < far[0] / 3
    assert far[2] < far[1] / 3


def test_an_edit_keeps_to_the_levels_and_goes_where_the_prompt_says(bell, image, monkeypatch):
    z, keep = bell.encode(image, sample=False), []
    decode = bell.decode
    monkeypatch.setattr(bell, "decode", lambda latents: keep.append(latents) or decode(latents))
    for start, target, scale in ((10, "a", 1.0), (0, "zebra", 3.0), (40, "zebra", 3.0), (49, "zebra", 3.0)):
        bell.edit(image, "a", target, steps=50, start=start, guidance_scale=scale)
    same, *edits = [(x - z).abs().mean().item() for x in keep]
    assert same < 0.08 * z.abs().mean()
    assert edits[0] > edits[1] > edits[2]
    empty, source, wanted = bell.encode_text(["", "a", "zebra"]).pooled[:, 0]
    moved = (keep[1] - z).mean()  # from the mean of the source to the guided mean of the target
    torch.testing.assert_close(moved, empty + 3 * (wanted - empty) - source, rtol=0.1, atol=0.01)
    whole = bell("zebra", steps=50, latents=bell.invert(image, "a", 50), guidance_scale=3.0, sampler=md.ddim)
    torch.testing.assert_close(whole, decode(keep[1]))


def test_what_is_wrong_is_said_before_the_first_step(pipe, image, monkeypatch):
    half = torch.ones(1, 1, 16, 16)
    monkeypatch.setattr(pipe.mmdit.blocks[0], "forward", None)  # no block of the network is reached
    for told, call in {
        "must divide by 4": lambda: pipe("a", height=18),  # the VAE's stride and the patch
        r"latents of shape \(1, 4, 8, 8\)": lambda: pipe("a", latents=torch.zeros(1, 4, 8, 8)),
        "3 of negative_prompt for 2 prompts": lambda: pipe(PROMPTS, negative_prompt=["a", "b", "c"]),
        "0 steps": lambda: pipe("a", steps=0),
        "1001 steps": lambda: pipe("a", steps=1001),
        "tokens and 75 fit": lambda: pipe("word " * 80),
        "strength = 1.3": lambda: pipe.img2img("a", image, strength=1.3),
        "strength = 1.3: take 0": lambda: pipe.inpaint("a", image, half, strength=1.3),
        "3 of image for 2 prompts": lambda: pipe.inpaint(PROMPTS, image.expand(3, -1, -1, -1), half),
        "2 of mask for 1 prompts": lambda: pipe.inpaint("a", image, half.expand(2, -1, -1, -1)),
        "mask is .* for an image of": lambda: pipe.inpaint("a", image, half[..., :8]),
        r"pixels are floats in \[-1, 1\]": lambda: pipe.img2img("a", 255 * image),
        "start = 50 of 50 steps": lambda: pipe.edit(image, "a", "b", start=50),
        "has no CrossAttention to borrow from": lambda: pipe.edit(image, "a", "b", borrow=0.3),
        "positions for 24x24 at most": lambda: pipe("a", height=52, width=16),  # of latents
        "16x14 pixels: height and width must divide by 4": lambda: pipe.img2img("a", image[..., :14], steps=3),
    }.items():
        with pytest.raises(ValueError, match=told):
            call()


WANTED = [  # as on the hub
    "model_index.json", "scheduler/scheduler_config.json", "transformer/config.json",
    "transformer/diffusion_pytorch_model.safetensors", "text_encoder_2/config.json", "text_encoder_2/model.safetensors",
    "tokenizer_2/vocab.json", "tokenizer_2/merges.txt",
]  # fmt: skip
UNWANTED = [  # T5 in its folder, once more in another folder in SD 3.5, and everything in one file
    "sd3.5_medium.safetensors", "text_encoder_3/config.json", "text_encoder_3/model-00001-of-00002.safetensors",
    "text_encoder_3/model.safetensors.index.json", "tokenizer_3/tokenizer.json", "text_encoders/t5xxl_fp16.safetensors",
    "text_encoder_2/model.fp16.safetensors",
]  # fmt: skip


def test_t5_is_not_fetched_from_the_hub(monkeypatch, tmp_path):
    fetched = []

    def snapshot_download(name, allow_patterns, ignore_patterns):
        files = filter_repo_objects(WANTED + UNWANTED, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns)
        fetched.extend(files)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    find("someone/sd3")
    assert fetched == WANTED


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_it_runs_on_a_gpu(pipe, dtype):
    wanted = pipe("a red circle", steps=4, latents=noise())
    there = tiny()
    for net in (there.mmdit, there.vae, there.text_encoder, there.text_encoder_2):
        net.to("cuda", dtype)
    got = there("a red circle", steps=4, latents=noise())
    assert got.device.type == "cuda"
    assert (got.cpu() - wanted).abs().mean() < {torch.float32: 0.01, torch.float16: 0.05, torch.bfloat16: 0.2}[dtype]
