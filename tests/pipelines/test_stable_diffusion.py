"""Stable Diffusion as a whole, tiny and in memory: what holds whatever the weights are."""

import pytest
import torch

import minidiff as md
from minidiff.nets import CrossAttention, SelfAttention, attention_maps, borrowed_attention, remembering
from minidiff.pipelines.inputs import depth_map, listed, matched, pasted, redraw_levels, small_mask
from minidiff.pretrained import Tokenizer, read_scheduler

SD1 = {"_class_name": "PNDMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
       "skip_prk_steps": True, "set_alpha_to_one": False, "steps_offset": 1}  # fmt: skip
PROMPTS = ["a red circle", "a blue square"]


def tiny(in_channels=4, **scheduler):
    torch.manual_seed(0)
    unet = md.UNet(in_channels, 4, (16, 32), (True, False), layers=1, context_dim=24)
    vae = md.VAE(channels=(16, 32), layers=1, groups=None)
    text = md.CLIPText(dim=24, layers=2, heads=2)
    for net, std in ((unet, 0.05), (vae, 0.1)):
        for parameter in net.parameters():  # what starts at zero would hide everything before it
            if parameter.abs().max() == 0:
                torch.nn.init.normal_(parameter, std=std)
    recipe = read_scheduler({**SD1, **scheduler})
    pipe = md.StableDiffusion(unet.eval(), vae.eval(), text.eval(), Tokenizer.clip(), recipe, size=16)
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
    return torch.randn(n, 4, 8, 8, generator=seeded())


def test_a_picture_for_each_prompt(pipe):
    images = pipe(PROMPTS, steps=4, generator=seeded())
    assert images.shape == (2, 3, 16, 16)
    assert images.abs().max() <= 1
    torch.testing.assert_close(images, pipe(PROMPTS, steps=4, generator=seeded()), rtol=0, atol=0)
    assert not torch.allclose(images, pipe(PROMPTS, steps=4, generator=seeded(4)))
    alone = pipe(PROMPTS[1], steps=4, latents=noise(2)[1:])
    torch.testing.assert_close(pipe(PROMPTS, steps=4, latents=noise(2))[1:], alone, rtol=1e-3, atol=1e-4)
    assert pipe("a", steps=2, height=24, width=40).shape == (1, 3, 24, 40)


def test_the_walk_can_be_looked_at(pipe):
    states = list(pipe.walk(PROMPTS, steps=5, generator=seeded()))
    assert len(states) == 5
    assert all(state.x.shape == (2, 4, 8, 8) for state in states)
    torch.testing.assert_close(pipe.decode(states[-1].x), pipe(PROMPTS, steps=5, generator=seeded()))


def test_the_loop_by_hand(pipe):
    """What the pipeline does is no more than this."""
    context, empty = pipe.encode_text("a red circle"), pipe.encode_text("")
    x, levels = noise(), pipe.schedule.levels(6, offset=1, last=pipe.schedule.at(0))
    for here, there in zip(levels, levels[1:], strict=False):
        with torch.no_grad():
            with_prompt, without = (pipe.unet(x, torch.tensor([here.t]), context=c) for c in (context, empty))
        eps = without + 7.5 * (with_prompt - without)
        x0 = (x - here.sigma * eps) / here.alpha
        x = there.alpha * x0 + there.sigma * eps
    wanted = pipe.vae.decode(x / 0.18215).clamp(-1, 1).detach()
    torch.testing.assert_close(pipe("a red circle", steps=6, latents=noise(), sampler=md.ddim), wanted, rtol=1e-3, atol=1e-4)


def test_guidance_and_the_negative_prompt(pipe):
    def draw(prompt="a red circle", **options):
        return pipe(prompt, steps=3, latents=noise(), **options)

    plain = draw(guidance_scale=1.0)
    torch.testing.assert_close(plain, draw(guidance_scale=1.0, negative_prompt="blurry"))  # scale 1 asks no negative
    torch.testing.assert_close(draw(guidance_scale=0.0), draw("", guidance_scale=1.0), rtol=1e-3, atol=1e-4)
    same = draw(guidance_scale=5.0, negative_prompt="a red circle")  # nothing to steer away from
    torch.testing.assert_close(same, plain, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(draw(guidance_scale=5.0), draw(guidance_scale=5.0, negative_prompt="blurry"), atol=1e-4)


def test_keys_and_values_of_the_prompt_are_computed_once(pipe):
    calls = []
    asked = [module for module in pipe.unet.modules() if isinstance(module, CrossAttention)]
    hooks = [module.to_k.register_forward_hook(lambda *_: calls.append(1)) for module in asked]
    pipe(PROMPTS, steps=5, generator=seeded())
    for hook in hooks:
        hook.remove()
    assert len(calls) == len(hooks) > 0
    net, x, t = remembering(pipe.unet), noise(), torch.tensor([5])
    first, second = pipe.encode_text("one"), pipe.encode_text("two")
    for context in (first, first, second, first):  # and another prompt is another answer
        torch.testing.assert_close(net(x, t, context=context), pipe.unet(x, t, context=context), rtol=0, atol=0)


def test_attention_can_be_seen(pipe):
    with attention_maps(pipe.unet) as maps:
        pipe("a red circle", steps=2, guidance_scale=1.0, sampler=md.ddim)
    assert len(maps) == sum(isinstance(m, CrossAttention) for m in pipe.unet.modules())
    for weights in maps.values():
        assert len(weights) == 2
        assert weights[0].shape[0::3] == (1, 77)
        torch.testing.assert_close(weights[0].sum(3), torch.ones(weights[0].shape[:3]))
    with attention_maps(pipe.unet, SelfAttention) as maps:
        pipe("a red circle", steps=1, guidance_scale=1.0)
    assert all(w[0].shape[2] == w[0].shape[3] for w in maps.values())
    module = CrossAttention(16, 24, heads=1)
    torch.nn.init.normal_(module.to_out.weight)
    x, context = torch.randn(1, 5, 16), torch.randn(1, 7, 24)
    torch.testing.assert_close(module(x, context), module.to_out(module.weights(x, context)[:, 0] @ module.to_v(context)))
    assert not any(m._forward_pre_hooks for m in pipe.unet.modules())


@pytest.mark.parametrize("sampler", [md.ddpm, md.ddim, md.euler, md.heun, md.lms, md.plms, md.dpmpp_2m])
def test_any_sampler_walks(pipe, sampler):
    images = pipe("a red circle", steps=4, generator=seeded(), sampler=sampler)
    assert images.isfinite().all()
    torch.testing.assert_close(images, pipe("a red circle", steps=4, generator=seeded(), sampler=sampler))


def test_a_v_network_is_read_as_one():
    pipe = tiny(_class_name="DDIMScheduler", clip_sample=False, prediction_type="v_prediction", rescale_betas_zero_snr=True,
                timestep_spacing="trailing")  # fmt: skip
    assert pipe.predicts == "v"
    assert pipe("a", steps=4, generator=seeded()).isfinite().all()


def test_img2img_from_nothing_to_everything(pipe, image):
    back = pipe.decode(pipe.encode(image, seeded()))
    torch.testing.assert_close(pipe.img2img("a", image, strength=0.0, steps=10, generator=seeded()), back)
    torch.testing.assert_close(pipe.img2img("a", image, strength=0.05, steps=10, generator=seeded()), back)  # half a step
    far = [(pipe.img2img("a", image, strength=s, steps=10, guidance_scale=1.0, generator=seeded()) - back).abs().mean()
           for s in (0.1, 0.4, 1.0)]  # fmt: skip
    assert far[0] < far[1] < far[2]
    both = pipe.img2img(PROMPTS, image, strength=0.5, steps=4, generator=seeded())
    assert both.shape == (2, 3, 16, 16)


@pytest.mark.parametrize("strength, left", [(0, 0), (0.05, 0), (0.1, 1), (0.55, 5), (0.99, 9), (1, 10)])
def test_strength_is_a_share_of_the_steps_and_counted_from_the_clean_end(strength, left):
    levels = md.Schedule.flow(shift=3.0).levels(10)
    kept = redraw_levels(levels, 10, strength)
    assert len(kept) == left + 1 and kept == levels[10 - left :] and kept[-1] is md.CLEAN
    assert redraw_levels(levels, 20, strength) == levels[max(0, 10 - int(20 * strength)) :]  # fewer levels than steps


@pytest.mark.parametrize("sampler", [None, md.ddim, md.euler, md.dpmpp_2m])
def test_inpainting_keeps_what_is_known(pipe, image, sampler):
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 8:] = 1
    z = pipe.encode(image, seeded())
    keep = {}
    decode, pipe.decode = pipe.decode, lambda latents: keep.setdefault("z", latents)
    try:
        pipe.inpaint("a", image, mask, steps=5, generator=seeded(), sampler=sampler, paste=False)
    finally:
        pipe.decode = decode
    torch.testing.assert_close(keep["z"][..., :4], z[..., :4])
    assert (keep["z"][..., 4:] - z[..., 4:]).abs().mean() > 0.1
    nothing = pipe.inpaint("a", image, torch.zeros(1, 1, 16, 16), steps=5, generator=seeded(), paste=False)
    torch.testing.assert_close(nothing, pipe.decode(z), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("in_channels", [4, 9])
@pytest.mark.parametrize("strength", [1.0, 0.6])
def test_outside_of_the_mask_every_pixel_is_the_originals(pipe, image, in_channels, strength):
    asked = pipe if in_channels == 4 else tiny(in_channels)
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 3:9, 5:] = 1  # no edge of it is on the VAE's grid
    mask[..., 3:6, 5:] = 0.4  # less than half: kept

    def paint(mask, paste=True):
        return asked.inpaint(PROMPTS, image, mask, strength, seeded(), paste, steps=4)

    drawn, plain = paint(mask), paint(mask, paste=False)
    new = mask.expand_as(drawn) >= 0.5
    assert drawn[~new].equal(image.expand_as(drawn)[~new])
    assert drawn[new].equal(plain[new])
    assert (plain[~new] - image.expand_as(drawn)[~new]).abs().mean() > 1e-3  # without paste the decoder moves what was kept
    assert paint(0 * mask).equal(image.expand(2, -1, -1, -1))  # nothing to paint
    white = torch.ones_like(mask)
    assert paint(white).equal(paint(white, paste=False))


@pytest.mark.parametrize("in_channels", [4, 9])
def test_inpainting_at_strength_0_gives_the_picture_back(pipe, image, in_channels):
    asked, mask = pipe if in_channels == 4 else tiny(in_channels), torch.zeros(1, 1, 16, 16)
    mask[..., :7] = 1
    copy = asked.decode(asked.encode(image, seeded()))  # as the VAE knows it
    drawn = asked.inpaint("a", image, mask, strength=0.0, steps=4, generator=seeded())
    torch.testing.assert_close(drawn, torch.where(mask > 0, copy, image))


def test_several_pictures_masks_and_prompts(pipe, image):
    two, mask = torch.cat([image, -image]), torch.zeros(2, 1, 16, 16)
    mask[0, :, :8], mask[1, :, 8:] = 1, 1
    for asked in (pipe, tiny(9)):
        drawn = asked.inpaint(PROMPTS, two, mask, steps=3, generator=seeded())
        assert drawn[0, :, 8:].equal(image[0, :, 8:]) and drawn[1, :, :8].equal(-image[0, :, :8])
        one = asked.inpaint(PROMPTS, image, mask, steps=3, generator=seeded())
        assert one[1, :, :8].equal(image[0, :, :8])
        assert asked.inpaint("a", image.double(), mask[:1], steps=3).dtype == torch.float32


def test_nine_and_five_channels(image):
    mask, depth = torch.ones(1, 1, 16, 16), torch.linspace(3, 90, 256).view(1, 1, 16, 16)
    nine, five = tiny(9), tiny(5)
    a = nine.inpaint(PROMPTS, image, mask, steps=3, generator=seeded())
    assert a.shape == (2, 3, 16, 16)
    mask[..., :8] = 0
    assert not torch.allclose(a, nine.inpaint(PROMPTS, image, mask, steps=3, generator=seeded()), atol=1e-3)
    b = five.depth2img("a", image, depth, steps=3, strength=1.0, generator=seeded())
    torch.testing.assert_close(b, five.depth2img("a", image, 7 * depth + 5, steps=3, strength=1.0, generator=seeded()),
                               rtol=1e-3, atol=1e-4)  # fmt: skip
    assert not torch.allclose(b, five.depth2img("a", image, -depth, steps=3, strength=1.0, generator=seeded()), atol=1e-3)


class Bell(torch.nn.Module):
    """A network that knows its data: latents from a normal distribution around a mean that the prompt decides."""

    config = {"in_channels": 4, "out_channels": 4}

    def __init__(self, schedule):
        super().__init__()
        self.schedule, self.weight = schedule, torch.nn.Parameter(torch.ones(1))

    def forward(self, x, t, context):
        level = self.schedule.at(t)
        (alpha, sigma), mean = level.like(x), context.tokens[:, 1, 0].view(-1, 1, 1, 1)  # of the first word
        return sigma * (x - alpha * mean) / (alpha**2 + sigma**2)


@pytest.fixture
def bell(pipe, image, monkeypatch):
    monkeypatch.setattr(pipe, "unet", Bell(pipe.schedule))
    monkeypatch.setattr(pipe.vae, "scale", pipe.vae.scale / pipe.encode(image, sample=False).std().item())
    return pipe


def test_inversion_comes_back_and_converges(bell, image):
    z, far = bell.encode(image, sample=False), []
    for steps in (10, 40, 160):
        latents = bell.invert(image, "a", steps=steps)
        assert latents.shape == z.shape
        *_, last = bell.walk("a", steps=steps, latents=latents, guidance_scale=1.0, sampler=md.ddim)
        far.append((last.x - z).abs().mean().item() / z.abs().mean().item())
    assert far[0] < 0.3
    assert far[1] < far[0] / 3
    assert far[2] < far[1] / 3


def test_an_edit_keeps_to_the_levels_and_goes_where_the_prompt_says(bell, image):
    z = bell.encode(image, sample=False)
    keep = []
    decode, bell.decode = bell.decode, lambda latents: keep.append(latents) or decode(latents)
    try:
        for start, target, scale in ((10, "a", 1.0), (0, "zebra", 3.0), (10, "zebra", 3.0), (49, "zebra", 3.0)):
            bell.edit(image, "a", target, steps=50, start=start, guidance_scale=scale)
    finally:
        bell.decode = decode
    same, *edits = [(x - z).abs().mean().item() for x in keep]
    assert same < 0.08 * z.abs().mean()
    assert edits[0] > edits[1] > 20 * edits[2]
    levels = bell.recipe.levels(50, md.ddim)
    climb = md.invert(bell.denoiser(["a"], "", 1.0, md.ddim), z, levels)
    x = next(state.x for state in climb if state.level == levels[10])  # the walk down begins at the level it was left at
    by_hand = md.sample(md.ddim, bell.denoiser(["zebra"], "", 3.0, md.ddim), x, levels[10:], progress=False)
    torch.testing.assert_close(keep[2], by_hand)
    empty, source, wanted = (bell.encode_text(text)[0, 1, 0] for text in ("", "a", "zebra"))
    moved = (keep[1] - z).mean()  # from the mean of the source to the guided mean of the target
    torch.testing.assert_close(moved, empty + 3 * (wanted - empty) - source, rtol=0.2, atol=0.01)
    whole = bell("zebra", steps=50, latents=bell.invert(image, "a", 50), guidance_scale=3.0, sampler=md.ddim)
    torch.testing.assert_close(whole, decode(keep[1]))


def test_an_edit_by_difference_walks_both_prompts_and_settles(pipe, image, monkeypatch):
    monkeypatch.setattr(pipe, "progress", False)
    sources, targets, noisy = ["a zebra", "b"], ["b zebra", "a"], lambda: torch.Generator().manual_seed(5)
    z, levels = pipe.encode(image.expand(2, -1, -1, -1), sample=False), pipe.recipe.levels(12, md.ddim)
    for share, tau in ((0.0, 1e9), (0.5, levels[2 + 5].t), (1.0, levels[-1].t)):
        found = pipe.edit_by_difference(image, sources, targets, 12, 2, 3.0, share, noisy())
        denoise, g = pipe.denoiser(sources + targets, sources * 2, 3.0, md.ddim), noisy()
        with borrowed_attention(pipe.unet, [0, 1, 0, 1], tau):
            changed = md.sample(md.by_difference, denoise, z, levels[2:11], progress=False, generator=g)
            noise = torch.randn(z.shape, generator=g)  # a sixth of 12 steps is left
            x = torch.cat([md.add_noise(x0, noise, levels[10]) for x0 in (z, changed)])
            last = md.sample(md.ddim, denoise, x, levels[10:], progress=False)
        torch.testing.assert_close(found, pipe.decode(last[2:]))


def test_an_edit_by_difference_goes_where_the_prompt_says(bell, image):
    z, keep, seeded = bell.encode(image, sample=False), [], lambda: torch.Generator().manual_seed(0)
    decode, bell.decode = bell.decode, lambda latents: keep.append(latents) or decode(latents)
    for target, scale in (("a", 1.0), ("zebra", 1.0), ("zebra", 3.0)):
        bell.edit_by_difference(image, "a", target, 50, 5, scale, generator=seeded())
    bell.decode = decode
    source, wanted = (bell.encode_text(text)[0, 1, 0] for text in ("a", "zebra"))
    same, once, thrice = [((x - z).mean() / (wanted - source)).item() for x in keep]
    assert 0.3 < once - same < 1 and (thrice - same) / (once - same) == pytest.approx(3, rel=1e-3)


def test_an_edit_that_borrows_draws_the_old_picture_beside_the_new(pipe, image, monkeypatch):
    monkeypatch.setattr(pipe, "progress", False)
    options = {"steps": 10, "start": 2, "negative_prompt": "a", "guidance_scale": 3.0}
    sources, targets = ["a zebra", "b"], ["b zebra", "a"]
    found = {share: pipe.edit(image, sources, targets, borrow=share, **options) for share in (0, 0.01, 0.5, 1)}
    torch.testing.assert_close(found[0.01], found[0], rtol=0, atol=1e-4)  # it looks, and borrows at no step
    levels = pipe.recipe.levels(10, md.ddim)
    z = pipe.encode(image.expand(2, -1, -1, -1), sample=False)
    *_, x = (s.x for s in md.invert(pipe.denoiser(sources, "", 1.0, md.ddim), z, levels) if s.level.sigma <= levels[2].sigma)
    for share, tau in ((0.5, levels[6].t), (1, levels[-1].t)):
        denoise = pipe.denoiser(sources + targets, [*sources, "a", "a"], 3.0, md.ddim)
        with borrowed_attention(pipe.unet, [0, 1, 0, 1], tau):
            last = md.sample(md.ddim, denoise, torch.cat([x, x]), levels[2:], progress=False)
        torch.testing.assert_close(found[share], pipe.decode(last[2:]))
        assert (found[share] - found[0]).abs().max() > 1e-3
        old = md.sample(md.ddim, pipe.denoiser(sources, "", 1.0, md.ddim), x, levels[2:], progress=False)
        torch.testing.assert_close(last[:2], old, rtol=1e-3, atol=1e-3)  # the old one is not guided, whatever the scale


def test_large_pictures_in_pieces(pipe):
    z = torch.randn(2, 4, 24, 20, generator=seeded())
    whole = pipe.decode(z)
    try:
        pipe.tile = 16
        pieces = pipe.decode(z)
        image = torch.nn.functional.interpolate(torch.rand(1, 3, 6, 5, generator=seeded()) - 0.5, (48, 40), mode="bilinear")
        tiled = pipe.encode(image, sample=False)
        pipe.tile = 24
        torch.testing.assert_close(pipe.decode(z), whole)  # one tile holds it all
    finally:
        pipe.tile = None
    assert 0 < (pieces - whole).abs().mean() < 0.1
    assert (tiled - pipe.encode(image, sample=False)).abs().mean() < 0.1 * tiled.abs().mean() + 0.05


def test_what_is_wrong_is_said_before_the_first_step(pipe, image, monkeypatch):
    for net in (pipe.unet, pipe.vae):
        monkeypatch.setattr(net, "forward", None)  # no network is reached
    monkeypatch.setattr(pipe.vae, "moments", None)
    half = torch.ones(1, 1, 16, 16)
    for told, call in {
        "a text or a list of texts": lambda: pipe([]),
        "strength = 1.3": lambda: pipe.img2img("a", image, strength=1.3),
        "strength = -0.1": lambda: pipe.inpaint("a", image, half, strength=-0.1),
        "must divide by 2": lambda: pipe("a", height=17),
        r"latents of shape \(1, 4, 4, 4\)": lambda: pipe("a", latents=torch.zeros(1, 4, 4, 4)),
        "3 of negative_prompt for 2 prompts": lambda: pipe(PROMPTS, negative_prompt=["a", "b", "c"]),
        "0 steps": lambda: pipe("a", steps=0),
        "tokens and 75 fit": lambda: pipe("word " * 80),
        "needs a U-Net that takes 5 channels": lambda: pipe.depth2img("a", image, half),
        "mask is .* for an image of": lambda: pipe.inpaint("a", image, half[..., :8]),
        "a mask holds 0": lambda: pipe.inpaint("a", image, 255 * half),
        "a mask holds 0 .*nan": lambda: pipe.inpaint("a", image, half * torch.nan),
        "mask is torch.bool": lambda: pipe.inpaint("a", image, half > 0),
        "2 of mask for 1 prompts": lambda: pipe.inpaint("a", image, half.expand(2, -1, -1, -1)),
        "3 of image for 2 prompts": lambda: pipe.inpaint(PROMPTS, image.expand(3, -1, -1, -1), half),
        "3 of image for 1 prompts": lambda: pipe.img2img("a", image.expand(3, -1, -1, -1)),
        "strength = nan": lambda: pipe.inpaint("a", image, half, strength=torch.nan),
        "strength = 1.3: take": lambda: pipe.inpaint("a", image, half, strength=1.3),
        "15x16 pixels": lambda: pipe.inpaint("a", image[:, :, 1:], half[:, :, 1:]),
        r"pixels are floats in \[-1, 1\]": lambda: pipe.img2img("a", 255 * image),
        "the image holds nan": lambda: pipe.img2img("a", image * torch.nan),
        "start = 50 of 50 steps": lambda: pipe.edit(image, "a", "b", start=50),
        "3 of source_prompt for 1 prompts": lambda: pipe.edit(image, ["a", "b", "c"], "b"),
        "start = 42 of 50 steps, of which the last 8": lambda: pipe.edit_by_difference(image, "a", "b", start=42),
        "start = -1 of 50 steps": lambda: pipe.edit_by_difference(image, "a", "b", start=-1),
        "2 of source_prompt for 1": lambda: pipe.edit_by_difference(image, ["a", "b"], "b"),
        "borrow = -1: a share": lambda: pipe.edit_by_difference(image, "a", "b", borrow=-1),
        "borrow = 1.5: a share": lambda: pipe.edit(image, "a", "b", borrow=1.5),
        "2 of negative_prompt for 1 prompts": lambda: pipe.edit(image, "a", "b", negative_prompt=["a", "b"]),
    }.items():
        with pytest.raises(ValueError, match=told):
            call()
    with pytest.raises(ValueError, match="takes 9 channels, not the 4"):
        tiny(9)("a")
    with pytest.raises(ValueError, match="needs a U-Net that takes 9 channels, and this one takes 5"):
        tiny(5).inpaint("a", image, half)
    nine, five = tiny(9), tiny(5)
    for net in (nine.unet, nine.vae, five.unet, five.vae):
        monkeypatch.setattr(net, "forward", None)
    for vae in (nine.vae, five.vae):
        monkeypatch.setattr(vae, "moments", None)
    for told, call in {
        "mask is .* for an image of": lambda: nine.inpaint("a", image, half[..., :8]),
        "strength = 1.3": lambda: nine.inpaint("a", image, half, strength=1.3),
        "3 of image for 2 prompts": lambda: nine.inpaint(PROMPTS, image.expand(3, -1, -1, -1), half),
        "depth is .* for an image of": lambda: five.depth2img("a", image, half[:, :, :8]),
        "strength = -1": lambda: five.depth2img("a", image, half, strength=-1),
        "the same everywhere": lambda: five.depth2img("a", image, half),
    }.items():
        with pytest.raises(ValueError, match=told):
            call()


def test_masks_and_depths():
    image, mask = torch.zeros(1, 3, 16, 16), torch.zeros(1, 1, 16, 16)
    mask[..., :8, 4:] = 0.5
    small = small_mask(mask, image, 8)
    assert small.flatten().tolist() == [0, 1, 0, 0]
    depth = depth_map(torch.arange(256.0).view(1, 1, 16, 16), image, 8)
    assert depth.shape == (1, 1, 2, 2)
    assert depth.min() == -1
    assert depth.max() == 1
    with pytest.raises(ValueError, match="the same everywhere"):
        depth_map(mask * 0, image, 8)
    drawn, soft = torch.ones(2, 3, 16, 16), mask[:, :, :, 4:8].repeat(1, 1, 1, 4)
    kept = pasted(drawn, image, soft + 0.49 * (soft == 0))
    assert kept[:, :, :8].min() == 1 and kept[:, :, 8:].abs().max() == 0
    assert listed("a") == ["a"]
    assert matched("x", ["a"], 3) == ["a", "a", "a"]
    assert matched("x", image, 3).shape == (3, 3, 16, 16)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_it_runs_on_a_gpu(pipe, dtype):
    wanted = pipe("a red circle", steps=4, latents=noise())
    there = tiny()
    for net in (there.unet, there.vae, there.text_encoder):
        net.to("cuda", dtype)
    got = there("a red circle", steps=4, latents=noise())
    assert got.device.type == "cuda"
    assert (got.cpu() - wanted).abs().mean() < {torch.float32: 0.01, torch.float16: 0.05, torch.bfloat16: 0.2}[dtype]
