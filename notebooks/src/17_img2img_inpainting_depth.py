# %% [markdown]
# # 17 · img2img, inpainting, depth2img
#
# **How do you change a picture and keep the rest of it?**
#
# So far every picture began as noise. Now there is one already: a red star in the upper left, and it should be blue. Words
# can say *blue*. They cannot say *there, as large as that, on just this grey*. So the picture itself has to go in, and the
# question is through which door. There are three. **img2img**: the walk begins at the noised picture instead of at noise.
# **Inpainting**: a mask says what may change, and the rest is known at every step. **depth2img**: the network sees how far
# away everything is, and nothing else of the picture. None of them needs a new sampler: each is a list of levels cut
# short, a denoiser wrapped in another, or more channels at the network's front.
#
# You need the sampler (chapter 06), latents (13) and the pipeline (16). The model is our own small Stable Diffusion, which
# comes with minidiff. Nothing is downloaded.

# %% [markdown]
# > **For the lecturer.** 90 minutes: 30 for img2img with its wrong ways, 35 for the mask, 15 for depth, 10 for the
# > photograph and the bugs. The whole notebook runs in about five minutes on one or two CPU cores.
# >
# > Worth asking before the cell is run: *at strength 0.5, how much noise is in the picture?* (section 3; hardly anyone says
# > three quarters) · *the walk starts from the clean picture instead of a noisy one. What comes out?*
# > (section 4) ·
# > *the mask leaves out half of the frame. Which pixels of it change?* (section 8; all of them) · *we tell the network
# > the distance where it was taught nearness. What will it draw?* (section 10).

# %%
import time
from functools import partial
from itertools import pairwise

import matplotlib
import matplotlib.cbook
import torch
from torch.testing import assert_close

import minidiff as md
from minidiff.data.shapes import draw, silhouettes
from minidiff.evaluation.editing import done, edits, originals, spoilt, untouched
from minidiff.training.latent import widened

# %% [markdown]
# The knobs. A quick mode for tests replaces a value by the one in its comment; nothing else changes.

# %% tags=["knobs"]
SEED = 17
SCENES = 40  # pictures that are changed  # quick: 4
STEPS = 20  # of a whole walk  # quick: 5
SCALE = 3.0  # of guidance
STRENGTHS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)  # quick: (0.0, 0.4, 0.8, 1.0)
TIMES = 5  # how often RePaint takes every step  # quick: 2
PAIRS = 4000  # draws of the example that is worked out exactly  # quick: 1500
LONG = True  # hold the model to the numbers in the text  # quick: False

# %% [markdown]
# **The task.** Pictures of one object each, and for each a sentence in which one thing is changed: its colour. What is asked
# for is known, so it can be counted how often it is done. The oracle reads the picture, by geometry and without a
# network (chapter 08). Three numbers:
#
# - **says**: the share of pictures that show an object of the shape and colour asked for, anywhere;
# - **done**: the share in which it is alone, on the right background *and where the old one was*;
# - **spoilt**: the mean absolute difference to the original, outside of the object. Images run from −1 to 1.

# %%
pipe = md.StableDiffusion.from_pretrained("shapes")
pipe.progress = False
some = edits("colour", SCENES, SEED)
images, wanted = originals(some, pipe.size), [edit.target for edit in some]
told = {"steps": STEPS, "guidance_scale": SCALE, "sampler": md.ddim}
print(f'"{some[0].source}" becomes "{some[0].target}"')
print(f"the network predicts {pipe.predicts} on a {pipe.schedule.kind} with shift {pipe.schedule.shift}")


# %%
def seeded(more=0):
    """A fresh generator, so that every method draws the same noise."""
    return torch.Generator().manual_seed(SEED + more)


def marks(drawn):
    """says, done and spoilt of one picture for each of our edits."""
    readings = md.data.read_shapes(drawn)
    says = [any((a.shape, a.colour) == (edit.after.shape, edit.after.colour) for a in reading)
            for edit, reading in zip(some, readings, strict=True)]  # fmt: skip
    right = [done(edit, reading) for edit, reading in zip(some, readings, strict=True)]
    return {"says": sum(says) / SCENES, "done": sum(right) / SCENES,
            "spoilt": spoilt(drawn, images, untouched(some, pipe.size)).mean().item()}  # fmt: skip


def show_marks(found):
    """A table of marks, a row for each method."""
    print(f"{'':32}{'says':>7}{'done':>7}{'spoilt':>9}")
    for name, mark in found.items():
        print(f"{name:32}{mark['says']:7.0%}{mark['done']:7.0%}{mark['spoilt']:9.4f}")


# %% [markdown]
# The VAE comes first, since every picture below passes through it. What it loses, nobody after it can win back.
# **Expected:** 0.004 on average over all pixels, most of it at edges.

# %%
copies = pipe.decode(pipe.encode(images, sample=False))
lost = (copies - images).abs().mean().item()
print(f"the VAE alone: {lost:.4f}")
if LONG:
    assert 0.002 < lost < 0.008

# %% [markdown]
# ## 1. Naive attempt: say everything
#
# The sentence names size, colour, shape and background. Draw after the sentence, from noise. **Expected:** nearly all
# say what was asked. Fewer than one in ten are done: the words do not know the place, and the noise decides it.

# %%
found = {"words alone": marks(by_words := pipe(wanted, generator=seeded(), **told))}
show_marks(found)
if LONG:
    assert found["words alone"]["says"] > 0.85 and found["words alone"]["done"] < 0.2
md.plot.show_images(torch.cat([images[:4], by_words[:4]]), columns=4, row_labels=["given", "words alone"],
                    column_labels=[f"{edit.after.colour} {edit.after.shape}" for edit in some[:4]])  # fmt: skip

# %% [markdown]
# It is a new picture, not a changed one. And a photograph cannot be said in words at all.
#
# ## 2. Begin at the noised picture
#
# A walk goes from noise to a picture, and at every level on its way $x_t$ is distributed as noised pictures are:
# $x_t = \alpha_t x_0 + \sigma_t \epsilon$. So a walk can be joined anywhere. Take *our* picture's latents $z$, noise
# them to a level, and walk down from there with other words (SDEdit, Meng et al. 2022, section 3):
#
# $$x_t = \alpha_t\, z + \sigma_t\,\epsilon, \qquad\text{then denoise from } t \text{ as usual.}$$
#
# What is still in $x_t$ is kept, what is drowned is invented. And noise does not drown all things alike. Average $n$
# independent noises and $\sigma$ falls to $\sigma/\sqrt n$. The average of a large even area stays what it is. So coarse
# things survive noise in which fine ones are lost: first edges go, then shapes, then the place, and last the
# background. Below, one picture's latents are noised further and further. Above, what is left; below, what the network
# makes of it in a single look, *without words*.

# %%
one, ts = images[:1], (200, 400, 600, 700, 800, 900, 950)
z = pipe.encode(one, sample=False)
eps = torch.randn(z.shape, generator=seeded())
unprompted = pipe.denoiser([""], guidance_scale=1.0)
noisy = [md.add_noise(z, eps, pipe.schedule.at(t)) for t in ts]
guesses = [unprompted(xt, pipe.schedule.at(t)).x0 for xt, t in zip(noisy, ts, strict=True)]
md.plot.show_images(pipe.decode(torch.cat(noisy + guesses)), columns=len(ts), row_labels=["$x_t$", r"$\hat x_0$, no words"],
                    column_labels=[f"σ = {pipe.schedule.at(t).sigma:.2f}" for t in ts])  # fmt: skip

# %% [markdown]
# How far up to begin is called **strength**. It is a share of the walk's steps: of $n$ steps, the last
# $\lfloor n \cdot \text{strength}\rfloor$ are taken. In code that is a slice of the list of levels, and the rest of
# img2img is three lines.


# %%
def redraw_levels(levels, steps, strength):
    """The end of a walk: its last int(steps * strength) steps, one level more than that."""
    return levels[max(0, len(levels) - 1 - int(steps * strength)) :]


@torch.no_grad()
def redrawn(image, prompts, strength, generator):
    """img2img: the picture, noised to the level at `strength` of the walk, and denoised from there after the prompts."""
    z = pipe.encode(image, generator)
    levels = redraw_levels(pipe.recipe.levels(STEPS, md.ddim), STEPS, strength)
    if len(levels) == 1:  # no step to take
        return pipe.decode(z)
    x = md.add_noise(z, torch.randn(z.shape, generator=generator), levels[0])
    denoise = pipe.denoiser(prompts, guidance_scale=SCALE, sampler=md.ddim)
    return pipe.decode(md.sample(md.ddim, denoise, x, levels, progress=False))


# %%
whole = pipe.recipe.levels(STEPS, md.ddim)
for strength in (0.0, 0.01, 0.5, 0.79, 1.0):
    assert redraw_levels(whole, STEPS, strength) == md.pipelines.inputs.redraw_levels(whole, STEPS, strength)
few = slice(0, 4)
for strength in (0.0, 0.6):
    theirs = pipe.img2img(wanted[few], images[few], strength, seeded(), **told)
    assert_close(redrawn(images[few], wanted[few], strength, seeded()), theirs, rtol=0, atol=1e-4)

# %% [markdown]
# ## 3. Two curves, and what strength is a share of
#
# Now the sweep. Two things pull against each other: the words get their way only where the old colour is drowned, and the
# place is kept only where it is not. **Expected:** at strength 0.2 about four in ten have changed colour. *says* climbs to
# all, or nearly all, from 0.5 on. *done* is the same number at first, for up to 0.2 whatever changes stays in its place, and
# nearly all of it up to 0.3; it has its summit of about six in ten at 0.3 and 0.4, and falls to less than a fifth at 1.
# *spoilt* moves little up to 0.3, where it is about an eighth of what it is at 1, and then goes up and up.

# %%
sweep = {s: marks(pipe.img2img(wanted, images, s, seeded(), **told)) for s in STRENGTHS}
show_marks({f"strength {s}": mark for s, mark in sweep.items()})
best = max(STRENGTHS, key=lambda s: sweep[s]["done"])
found[f"img2img, strength {best}"] = sweep[best]
far = sweep[1.0]["spoilt"]
assert sweep[0.0]["says"] == 0 and sweep[0.0]["spoilt"] < sweep[1.0]["spoilt"]
if LONG:
    assert 0.2 < sweep[0.2]["says"] < 0.6 and sweep[0.5]["says"] > 0.9 and sweep[1.0]["says"] > 0.9
    assert 0.3 <= best <= 0.5 and sweep[best]["done"] > sweep[1.0]["done"] + 0.2
    assert sweep[0.3]["spoilt"] < far / 4
md.plot.show_curves(
    {"says what was asked": (STRENGTHS, [sweep[s]["says"] for s in STRENGTHS]),
     "and where it was": (STRENGTHS, [sweep[s]["done"] for s in STRENGTHS]),
     "spoilt, of that at strength 1": (STRENGTHS, [sweep[s]["spoilt"] / far for s in STRENGTHS])},
    xlabel="strength", ylabel="share", title="obedience and faithfulness",
)  # fmt: skip

# %% [markdown]
# The same in pictures, with the same noise in every column. (An orange star that is to be cyan may be yellow on the way: as
# far towards the words as the old colour lets it go.)

# %%
shown = STRENGTHS[:: max(1, len(STRENGTHS) // 6)]
rows = [pipe.img2img(wanted[:3], images[:3], s, seeded(), **told) for s in shown]
md.plot.show_images(torch.stack([images[:3], *rows], 1).flatten(0, 1), columns=1 + len(rows),
                    row_labels=[f"{edit.after.colour} {edit.after.shape}" for edit in some[:3]],
                    column_labels=["given", *shown])  # fmt: skip

# %% [markdown]
# Why is so much decided below 0.5? Because strength counts *steps*, and where the steps lie is up to the schedule.
# How much noise a picture gets at strength $s$ is $\sigma$ at the share $s$ of the walk. On a flow with shift $k$ (chapter
# 20) that is $ks/(1 + (k-1)s)$. **Expected** at strength 0.5: $\sigma = 0.5$ on a plain flow, 0.75 on ours, 0.85
# with Stable Diffusion's schedule. One word, three amounts of noise: a strength that was found for one checkpoint says nothing
# about another.

# %%
shares = [s / 50 for s in range(1, 51)]
schedules = {"flow": md.Schedule.flow(), "flow, shift 3 (ours)": md.Schedule.flow(shift=3.0),
             "Stable Diffusion": md.Schedule.scaled_linear()}  # fmt: skip
sigmas = {name: [redraw_levels(schedule.levels(50, "trailing"), 50, s)[0].sigma for s in shares]
          for name, schedule in schedules.items()}  # fmt: skip
half = [values[shares.index(0.5)] for values in sigmas.values()]
print("sigma at strength 0.5:", [round(float(value), 3) for value in half])
assert all(abs(value - expected) < 0.02 for value, expected in zip(half, (0.5, 0.75, 0.85), strict=True))
md.plot.show_curves({name: (shares, values) for name, values in sigmas.items()}, xlabel="strength", ylabel="σ",
                    title="how much noise a strength is")  # fmt: skip

# %% [markdown]
# Two small print lines. Strength moves in steps: of 20, the strengths 0.50 to 0.54 are one and the same. And
# $\lfloor\cdot\rfloor$ is taken of a floating-point product, so 0.58 of 50 steps, which is 29, becomes 28. The library keeps
# that, because the pipelines it is compared with do so too. (It is the kink in the curves above.)

# %%
assert redraw_levels(whole, STEPS, 0.5) == redraw_levels(whole, STEPS, 0.54)
print(f"0.58 * 50 = {0.58 * 50}, so {int(0.58 * 50)} steps")
assert int(0.58 * 50) == 28

# %% [markdown]
# ## 4. Four wrong ways in
#
# The network is told a level and believes it. What happens when it is told something else than what it sees?
#
# - **No noise at all**, at the level of strength 0.5: "a clean picture must be even better".
# - **Too little noise**: noised to the level of strength 0.2, walked from that of 0.5.
# - **Too much**: noised to the level of 0.8, walked from that of 0.5. Noise is left over, and becomes picture.
# - **From the other end**: the slice begins at `int(steps * strength)`, so that strength 0.3 means 0.7. (Whoever tests it
#   with 0.5 finds nothing.)
#
# One would expect ruins. But look at what DDIM does with the first two. The network says $\hat x_0$, and
# $\hat\epsilon = (x_t - \alpha_t\hat x_0)/\sigma_t$ is all that is left. Without noise that is no noise, but *the old
# picture*, and every step carries it on faithfully. So the old picture holds out against the words, as if strength was lower.
# Little looks broken; the knob only does not do what it says. **Expected:** without noise fewer than half as many
# pictures say what was asked, and *spoilt* is less than a quarter of the right way's: the marks lie between those of
# strength 0.1 and 0.2. Of the four pictures shown, only the last is plainly broken: its cross is neither the old nor the new.
# With too much noise it is the other way round: all or nearly all obey, as they do the right way, but *spoilt* is nearly half
# as high again, and only about half as many edits are done.


# %%
@torch.no_grad()
def walked(levels, noised_to=None):
    """Our pictures, noised to one level (None: not at all) and walked down from levels[0], which may be another."""
    generator = seeded()
    z = pipe.encode(images, generator)
    x = z if noised_to is None else md.add_noise(z, torch.randn(z.shape, generator=generator), noised_to)
    denoise = pipe.denoiser(wanted, guidance_scale=SCALE, sampler=md.ddim)
    return pipe.decode(md.sample(md.ddim, denoise, x, levels, progress=False))


# %%
levels, less, more, mild = (redraw_levels(whole, STEPS, s) for s in (0.5, 0.2, 0.8, 0.3))
end = whole[int(STEPS * 0.3) :]
ways = {"right, 0.5": walked(levels, levels[0]), "no noise": walked(levels), "too little noise": walked(levels, less[0]),
        "too much noise": walked(levels, more[0]), "right, 0.3": walked(mild, mild[0]),
        "0.3 from the other end": walked(end, end[0])}  # fmt: skip
wrong = {name: marks(drawn) for name, drawn in ways.items()}
show_marks(wrong)
assert wrong["0.3 from the other end"]["spoilt"] > wrong["right, 0.3"]["spoilt"]
if LONG:
    right = wrong["right, 0.5"]
    assert wrong["no noise"]["says"] < right["says"] / 2 and wrong["no noise"]["spoilt"] < right["spoilt"] / 3
    assert wrong["too much noise"]["spoilt"] > 1.2 * right["spoilt"]
    assert wrong["too much noise"]["done"] < right["done"] - 0.1
    assert wrong["0.3 from the other end"]["spoilt"] > 3 * wrong["right, 0.3"]["spoilt"]
md.plot.show_images(torch.stack([images[:4], *(drawn[:4] for drawn in ways.values())], 0).flatten(0, 1), columns=4,
                    row_labels=["given", *ways])  # fmt: skip

# %% [markdown]
# ## 5. A mask: what is known is told at every step
#
# img2img may change everything a little. Often we know exactly what must not change. A **mask** says so: 1 where something
# is to be invented, 0 where the picture stays. Ours covers the object and a margin.
#
# The naive way is scissors and glue: draw after the words, cut out what lies under the mask, lay it on the picture.
# **Expected:** *done* in fewer than one of ten, no better than words alone. The new object is somewhere, and the hole is where
# the old one was. (*spoilt* is small for every masked edit, and not zero: the mask reaches a
# little further than the zone that it leaves out.)

# %%
masks = (torch.stack([silhouettes([edit.before], pipe.size, 1.4)[0] for edit in some])[:, None] > 0).float()  # (N, 1, 64, 64)
glued = torch.where(masks > 0, by_words, images)
found["cut out and glued"] = marks(glued)
show_marks({"cut out and glued": found["cut out and glued"]})
if LONG:
    assert found["cut out and glued"]["done"] < 0.2
md.plot.show_images(torch.cat([torch.where(masks > 0, 0, images)[:6], glued[:6]]), columns=6,
                    row_labels=["to be painted", "glued"])  # fmt: skip

# %% [markdown]
# The two halves must be made together. RePaint's blend (Lugmayr et al. 2022, eq. 8) does this: after every step, what is known
# is replaced by the original, noised to the level that was reached. With our $m = 1$ for what is invented,
#
# $$x_t \leftarrow m \odot x_t + (1-m) \odot (\alpha_t\, z + \sigma_t\, \epsilon).$$
#
# One can do this without touching the sampler. Every step is made of $\hat x_0$ and $\hat\epsilon$; if the denoiser says
# $z$ and $\epsilon$ wherever the mask is 0, then any step takes that part to $\alpha_t z + \sigma_t\epsilon$ by itself. So
# inpainting is a denoiser around a denoiser: one that knows the answer, in parts.


# %%
def inpainting(denoise, known, mask, noise):
    """A denoiser that says x0 = known and eps = noise where mask is 0; elsewhere, what `denoise` says."""

    def denoise_unknown(xt, level):
        x0, eps = denoise(xt, level)
        return md.Estimate(torch.lerp(known, x0, mask), torch.lerp(noise, eps, mask))

    return denoise_unknown


# %% [markdown]
# The mask has to become as small as the latents, and a latent is kept or not as a whole. The original asks one pixel
# of each square, the upper left, and so does the library. Section 8 looks at what that does.


# %%
def small_mask(mask, stride):
    """(B, 1, H, W) -> (B, 1, H/stride, W/stride): 1 where the upper left pixel of the square was 1/2 or more."""
    return (mask[:, :, ::stride, ::stride] >= 0.5).float()


@torch.no_grad()
def repainted(image, mask, prompts, generator):
    """Inpainting by a network that knows nothing of masks, as the decoder leaves it."""
    z, here = pipe.encode(image, generator), small_mask(mask, pipe.vae.stride)
    noise = torch.randn(z.shape, generator=generator)
    denoise = inpainting(pipe.denoiser(prompts, guidance_scale=SCALE, sampler=md.ddim), z, here, noise)
    x = md.sample(md.ddim, denoise, pipe.recipe.start(noise, whole[0]), whole, progress=False)
    return pipe.decode(torch.lerp(z, x, here))


# %%
assert_close(small_mask(masks, pipe.vae.stride), md.pipelines.inputs.small_mask(masks, images, pipe.vae.stride))
theirs = pipe.inpaint(wanted[few], images[few], masks[few], generator=seeded(), paste=False, **told)
assert_close(repainted(images[few], masks[few], wanted[few], seeded()), theirs, rtol=0, atol=1e-4)

# %% [markdown]
# **Expected:** no more than about a quarter of the edits are done, though the two halves now fit. Look at the pictures that
# failed: the hole was often filled with background and a smear or a speck of colour, as if nobody had asked for an object.

# %%
began = time.perf_counter()
blended = pipe.inpaint(wanted, images, masks, generator=seeded(), **told)
seconds = {"blend": time.perf_counter() - began}
found["blend"] = marks(blended)
show_marks({"blend": found["blend"]})
if LONG:
    assert found["blend"]["done"] < 0.5
md.plot.show_images(torch.cat([torch.where(masks > 0, 0, images)[:8], blended[:8]]), columns=min(8, SCENES),
                    row_labels=["to be painted", "blend"])  # fmt: skip

# %% [markdown]
# ## 6. The blend forgets to look
#
# Why? At the first step $x_t$ is pure noise, and the network plans an object *somewhere*. Where the mask is 0 the plan is
# thrown away. One step later it sees a little of the known part, but by now part of the decision is made. The known part
# is told in time; what is invented is never given the time to answer it.
#
# The smallest example has two pixels, normal with variance 1 and correlation 0.9, and its denoiser is a formula: the
# conditional mean of a Gaussian, $\hat x_0 = \alpha C(\alpha^2 C + \sigma^2 I)^{-1} x_t$. The left pixel is known to be 1.5.
# Then the right one is $0.9 \cdot 1.5 = 1.35$ on average. **Expected of the blend:** less than 0.9, though the denoiser is
# perfect.


# %%
def pair_denoiser(correlation):
    """The exact denoiser of two standard normal pixels (B, 1, 1, 2) with this correlation."""
    cov = torch.tensor([[1.0, correlation], [correlation, 1.0]], dtype=torch.float64)

    def denoise(xt, level):
        gain = level.alpha * cov @ torch.linalg.inv(level.alpha**2 * cov + level.sigma**2 * torch.eye(2, dtype=torch.float64))
        x0 = (xt.flatten(1) @ gain.T).view_as(xt)
        return md.Estimate(x0, (xt - level.alpha * x0) / level.sigma)

    return denoise


# %% [markdown]
# RePaint's cure is time. Take the step, go back up by fresh noise, and take it again, several times over (algorithm 1). What
# is the way back up? It must lead from the marginal at `there` to that at `here`, as the forward process does: scale by
# $\rho = \alpha_\text{here}/\alpha_\text{there}$, and add what is missing of the variance,
#
# $$x_\text{here} = \rho\, x_\text{there} + \sqrt{\sigma_\text{here}^2 - \rho^2\sigma_\text{there}^2}\;\epsilon'.$$
#
# Check: the picture's factor is $\rho\,\alpha_\text{there} = \alpha_\text{here}$, the noise's variance
# $\rho^2\sigma_\text{there}^2 + (\sigma_\text{here}^2 - \rho^2\sigma_\text{there}^2)$. Both are those of `here`.


# %%
@torch.no_grad()
def repaint(denoise, x, levels, times=5, generator=None):
    """DDIM that takes every step `times` times, noised back up between them (Lugmayr et al. 2022, algorithm 1)."""
    if times < 1:
        raise ValueError(f"times = {times}: every step is taken once or more")
    for here, there in pairwise(levels):
        for again in reversed(range(times)):
            estimate = denoise(x, here)
            x = md.ddim_step(x, estimate, here, there)
            if again:  # not after the last time
                rho = here.alpha / there.alpha
                fresh = torch.randn(x.shape, generator=generator, dtype=x.dtype)
                x = rho * x + (here.sigma**2 - (rho * there.sigma) ** 2) ** 0.5 * fresh
        yield md.State(x, estimate.x0, there)


# %%
levels, known = md.Schedule.linear().levels(25), torch.full((PAIRS, 1, 1, 2), 1.5, dtype=torch.float64)
mask = torch.tensor([0.0, 1.0]).double().expand(known.shape)  # the left pixel is known
noise = torch.randn(known.shape, generator=seeded(1)).double()
knows = inpainting(pair_denoiser(0.9), known, mask, noise)
by_hand, by_library = (md.sample(walk, knows, noise, levels, progress=False, times=3, generator=seeded())
                       for walk in (repaint, md.repaint))  # fmt: skip
assert_close(by_hand, by_library, rtol=0, atol=1e-6)
counts = (1, 2, 3, 5, 8)
drawn = {k: md.sample(md.repaint, knows, noise, levels, progress=False, times=k, generator=seeded())[..., 1] for k in counts}
means, spreads = ({k: x.mean().item() for k, x in drawn.items()}, {k: x.std().item() for k, x in drawn.items()})
print("mean, which should be 1.35:", {k: round(v, 2) for k, v in means.items()})
print("spread, which should be 0.44:", {k: round(v, 2) for k, v in spreads.items()})
assert means[1] < 0.9 and means[1] < means[2] < means[5] < means[8] and abs(means[8] - 1.35) < 0.12
md.plot.show_curves({"RePaint": (counts, list(means.values())), "exact": (counts, [1.35] * len(counts))},
                    xlabel="times that every step is taken", ylabel="mean of the unknown pixel",
                    title="time to take notice")  # fmt: skip

# %% [markdown]
# The error is the sampler's, not the network's, and repeating heals it. On the model it costs `TIMES` times as much. So it
# has a rival: the plain blend with as many calls, spent on smaller steps. **Expected:** RePaint gets about half
# done, nearly twice as many as the blend; the blend gains next to nothing from its smaller steps, for it hurries past just
# the same.
# (Of 40 edits, six more or fewer may be chance: who leads is what to remember, not the figures.)

# %%
repainting = told | {"sampler": partial(md.repaint, times=TIMES)}
began = time.perf_counter()
resampled = pipe.inpaint(wanted, images, masks, generator=seeded(), **repainting)
seconds["RePaint"] = time.perf_counter() - began
slower = pipe.inpaint(wanted, images, masks, generator=seeded(), **told | {"steps": TIMES * STEPS})
found |= {"RePaint": marks(resampled), "blend, as many calls": marks(slower)}
show_marks({name: found[name] for name in ("blend", "RePaint", "blend, as many calls")})
if LONG:
    assert found["RePaint"]["done"] > found["blend"]["done"] + 0.1
    assert found["RePaint"]["done"] > found["blend, as many calls"]["done"] + 0.1

# %% [markdown]
# ## 7. A network that sees the hole
#
# The third way trains for the task. The network gets five channels more beside its four: the small mask, and the latents of the
# picture with grey in the hole (Rombach et al. 2022, section 4.5; its inpainting checkpoint has 9 channels in all). It need not
# guess what is there: it sees it, at every level, clean.
#
# Such a network is not begun anew. `widened` gives the first convolution five more input channels *with weights of zero*, so
# that at the first step of its training the wide network answers as the narrow one does, whatever the new channels hold.

# %%
wide = widened(pipe.unet, 9)
x, t, context = torch.randn(2, 4, 16, 16, generator=seeded()), torch.tensor([900.0, 300.0]), pipe.encode_text(wanted[:2])
anything = 100 * torch.randn(2, 5, 16, 16, generator=seeded(1))
with torch.no_grad():
    assert_close(wide(torch.cat([x, anything], 1), t, context=context), pipe.unet(x, t, context=context), rtol=0, atol=1e-4)
grown = sum(p.numel() for p in wide.parameters()) - sum(p.numel() for p in pipe.unet.parameters())
print(f"{grown} weights more, of {sum(p.numel() for p in wide.parameters()):,}")


# %%
nine = md.StableDiffusion.from_pretrained("shapes/inpaint")
nine.progress = False
began = time.perf_counter()
seeing = nine.inpaint(wanted, images, masks, generator=seeded(), **told)
seconds["9 channels"], found["9 channels"] = time.perf_counter() - began, marks(seeing)
show_marks({name: found[name] for name in ("cut out and glued", *seconds)})
print("seconds:", {name: round(value, 1) for name, value in seconds.items()})
if LONG:
    assert found["9 channels"]["done"] > 0.8 and found["9 channels"]["done"] > found["RePaint"]["done"] + 0.25
    assert found["9 channels"]["spoilt"] < min(found[name]["spoilt"] for name in ("cut out and glued", "blend", "RePaint"))
md.plot.show_images(torch.cat([torch.where(masks > 0, 0, images)[:6], glued[:6], blended[:6], resampled[:6], seeing[:6]]),
                    columns=min(6, SCENES),
                    row_labels=["to be painted", "glued", "blend", "RePaint", "9 channels"])  # fmt: skip

# %% [markdown]
# **Expected:** nine of ten or more done, at the price of one walk, and the least spoilt of the four. Three of
# them form a ladder: the blend needs nothing, RePaint needs time, and the nine channels need a training. With a checkpoint
# that was made for it, take the last.
#
# ## 8. Outside of the mask, and at its edge
#
# The promise was that the rest of the picture stays. Did it? The latents outside are the original's, exactly. But the pixels
# are made by a decoder whose convolutions look far beyond their own square, and by a VAE that loses a little everywhere. With
# `paste=False` the pipeline gives what the decoder leaves. **Expected:** a mean difference outside of the mask of some seven
# thousandths, four times the VAE's own loss there, and most of it near the mask. By default the pipeline puts the original
# pixels back, and the difference is 0, to the last bit.

# %%
plain = pipe.inpaint(wanted, images, masks, generator=seeded(), paste=False, **told)
outside = (masks < 0.5).expand_as(images)
error = {"the VAE alone": copies, "decoded": plain, "pasted": blended}
print({name: round((drawn - images).abs()[outside].mean().item(), 5) for name, drawn in error.items()})
assert blended[outside].equal(images[outside]) and blended[~outside].equal(plain[~outside])
assert (plain - images).abs()[outside].mean() > (copies - images).abs()[outside].mean() * 0.9
if LONG:
    assert 0.001 < (plain - images).abs()[outside].mean() < 0.02
md.plot.show_images(torch.cat([images[:3], plain[:3], 20 * (plain - images).abs()[:3] - 1]), columns=3,
                    row_labels=["original", "decoded", "difference, 20 ×"])  # fmt: skip

# %% [markdown]
# Pasting has a price, a **seam**: on one side of the mask's edge stand original pixels, on the other the decoder's. Measure
# it on the last pixels before the edge, where both should show the background: how far is the drawing from the original
# there? And the small mask has an edge of its own. It asks the upper left pixel of each square, so it lies up to three
# pixels to the right of and below where it should. A tight mask leaves the old object's rim in the latents; a generous one
# gives the network room. **Expected:** with a mask of the object's own size, a sixth of what is to be painted lies
# under latents that are kept, and the seam is about ten times that of a mask 1.4 times as large. (Not all of this is a
# fault: the last pixels of so tight a mask are the object's own, and their colour was to change. The fair comparison is 1.2
# with 1.4, where they show the background: still about twice as much.)


# %%
def seam(drawn, image, mask):
    """Mean absolute difference on the pixels inside the mask that touch its outside."""
    near = torch.nn.functional.max_pool2d(1 - mask, 3, stride=1, padding=1)  # (N, 1, H, W): outside, one pixel further
    rim = (near * mask).expand_as(image)
    return ((drawn - image).abs() * rim).sum().item() / rim.sum().item()


# %%
seams, missed, drawings = {}, {}, []
for grow in (1.0, 1.2, 1.4):
    tight = (torch.stack([silhouettes([edit.before], pipe.size, grow)[0] for edit in some[:16]])[:, None] > 0).float()
    small = small_mask(tight, pipe.vae.stride).repeat_interleave(pipe.vae.stride, 2).repeat_interleave(pipe.vae.stride, 3)
    drawings.append(nine.inpaint(wanted[:16], images[:16], tight, generator=seeded(), **told))
    seams[grow] = seam(drawings[-1], images[:16], tight)
    missed[grow] = ((tight > small).sum() / tight.sum()).item()
print("seam:", {grow: round(value, 4) for grow, value in seams.items()})
print("to be painted, but under latents that are kept:", {grow: f"{value:.1%}" for grow, value in missed.items()})
assert missed[1.0] > 0.05
if LONG:
    assert seams[1.0] > 4 * seams[1.4] and seams[1.2] > 1.4 * seams[1.4]
shown = (tight[:4] + small[:4] - 1).expand(-1, 3, -1, -1)
md.plot.show_images(torch.cat([*(drawing[:4] for drawing in drawings), shown]), columns=4,
                    row_labels=["mask × 1.0", "mask × 1.2", "mask × 1.4", "both masks of 1.4"],
                    title="grey in the last row: the two masks disagree")  # fmt: skip

# %% [markdown]
# So: paint a generous mask. A mask with soft edges does not help here, since it is cut at one half before anything else
# happens; it would help the *pasting*, and that is left to you.
#
# ## 9. Nothing, everything, and nonsense
#
# Limits are where formulas show what they mean. A mask of zeros leaves the picture as it is. A mask of ones forgets it: on a
# flow the walk starts from noise alone, so any two pictures give the same. Strength 0 gives the VAE's copy under the mask.
# What is nonsense is refused in one sentence, before a network is asked.

# %%
pair, ones = images[:2], torch.ones_like(masks[:2])
assert pipe.inpaint(wanted[:2], pair, 0 * ones, generator=seeded(), **told).equal(pair)
same = [pipe.inpaint(wanted[:1], picture, ones[:1], generator=seeded(), **told) for picture in (pair[:1], -pair[:1])]
assert_close(*same, rtol=0, atol=1e-4)
copy = pipe.decode(pipe.encode(pair, seeded()))
half = pipe.inpaint(wanted[:2], pair, masks[:2], strength=0.0, generator=seeded(), **told)
assert_close(half, torch.where(masks[:2] > 0, copy, pair), rtol=0, atol=1e-5)
for nonsense in (lambda: pipe.inpaint(wanted[0], pair[:1], masks[:1, :, :32], **told),
                 lambda: pipe.inpaint(wanted[0], pair[:1], 255 * ones[:1], **told),
                 lambda: pipe.img2img(wanted[0], pair[:1], strength=1.3, **told),
                 lambda: pipe.depth2img(wanted[0], pair[:1], ones[:1], **told)):  # fmt: skip
    try:
        nonsense()
    except ValueError as refused:
        print("ValueError:", refused)
    else:
        raise AssertionError("this should have been refused")

# %% [markdown]
# ## 10. Depth: keep the geometry, forget the colours
#
# To change a colour we had to drown the old one, and the place went with it. Could one keep *only* the place? A **depth
# map** says how far away every pixel is. It holds outlines and order, and no colour at all. The network of depth2img has
# one more channel for it, five in all, and with that it can walk from pure noise, strength 1: whatever is in the picture is
# forgotten, except for what the depth says.
#
# Stable Diffusion 2 takes its depth from another network (MiDaS), which guesses it from the photograph. Our scenes know
# theirs exactly. One trap: MiDaS, and therefore `depth2img`, count *nearness*, larger is nearer; our scenes know the
# *distance*. Hence the minus sign below. Before it goes in, the map is made as small as the latents and stretched to [−1, 1]
# (`depth_map`, exercise 16.3).

# %%
five = md.StableDiffusion.from_pretrained("shapes/depth")
five.progress = False
_, distance = draw([[edit.before] for edit in some], pipe.size)  # (N, 1, 64, 64), the background at 1
by_depth = five.depth2img(wanted, images, -distance, strength=1.0, generator=seeded(), **told)
far_is_near = five.depth2img(wanted, images, distance, strength=1.0, generator=seeded(), **told)
found["depth, strength 1"], found["depth, sign forgotten"] = marks(by_depth), marks(far_is_near)
show_marks(found)
if LONG:
    assert found["depth, strength 1"]["done"] > 0.85
    assert found["depth, strength 1"]["done"] > found[f"img2img, strength {best}"]["done"] + 0.2
    assert found["depth, strength 1"]["spoilt"] < found["words alone"]["spoilt"] / 8
    assert found["depth, sign forgotten"]["done"] < found["depth, strength 1"]["done"] / 4
    assert found["depth, sign forgotten"]["says"] > 0.75
md.plot.show_images(torch.cat([images[:6], (1 - 2 * distance).expand(-1, 3, -1, -1)[:6], by_depth[:6], far_is_near[:6]]),
                    columns=min(6, SCENES), row_labels=["given", "near is bright", "by depth", "sign forgotten"])  # fmt: skip

# %% [markdown]
# **Expected:** all or nearly all done, with *spoilt* less than a tenth of what words alone leave: the background is drawn anew
# from the words, but the words name it. With the sign forgotten nothing is refused, about nine of ten still say what was
# asked, and *none* is done. The network reads a hole where an object stands, and draws its object beside it, or two of them,
# as in half of the six columns. No error, and a picture that is nearly right.
#
# The table now holds the answer to this chapter's question, or rather three: keep the coarse (img2img), keep what lies outside
# (inpainting), keep the geometry (depth).
#
# ## 11. A real photograph, in its own shape
#
# Nothing in this code knows that pictures are 64 × 64, or drawings. matplotlib brings a photograph with it: Grace Hopper,
# who wrote the first compiler, 512 × 600 pixels. `load_picture` makes its shorter side 96 and cuts as little as possible off
# the other, so that both divide by the pipeline's stride. We ask for a medal.
#
# What to expect of a model that never saw a face? Its VAE has learned flat areas and sharp edges. **Expected:** its copy of the
# photograph is about forty times worse than of a drawing, and recognisable. img2img at 0.5 forgets her altogether: what the
# network has never seen, it replaces by what it has. And no medal comes: this is the blend again, and as in section 5 it fills
# the hole with ground, here a dark blue and a speck of pink in a corner. What is outside of the mask is untouched all the same.

# %%
file = matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)
photo = md.data.load_picture(file, size=96, stride=pipe.stride)
height, width = photo.shape[2:]
medal = torch.zeros(1, 1, height, width)
medal[:, :, int(0.68 * height) : int(0.95 * height), int(0.06 * width) : int(0.38 * width)] = 1
copy = pipe.decode(pipe.encode(photo, sample=False))
tame = pipe.img2img("a red heart", photo, 0.5, seeded(), **told)
with_medal = pipe.inpaint("a large red heart on a black background", photo, medal, generator=seeded(), **told)
print(f"{width} x {height}; the VAE loses {(copy - photo).abs().mean():.3f} of the photograph, {lost:.4f} of a drawing")
kept = (medal < 0.5).expand_as(photo)
assert height > width and not height % pipe.stride and with_medal[kept].equal(photo[kept])
if LONG:
    assert (copy - photo).abs().mean() > 15 * lost
md.plot.show_images(torch.cat([photo, copy, tame, torch.where(medal > 0, 0, photo), with_medal]),
                    titles=["photograph", "the VAE's copy", "img2img, 0.5", "to be painted", "a red heart"])  # fmt: skip

# %% [markdown]
# With Stable Diffusion's weights on disk the same lines do the real thing:
#
# ```python
# pipe = md.StableDiffusion.from_pretrained("stable-diffusion-v1-5/stable-diffusion-inpainting")
# photo, mask = load_picture("bench.png", 512, 64), (load_picture("bench_mask.png", 512, 64, channels=1) + 1) / 2
# save_picture("out.png", pipe.inpaint("a cat on a bench", photo, mask))
# ```
#
# or from the command line, `python -m minidiff edit bench.png --to "a cat on a bench" --mask bench_mask.png --model FOLDER`.
#
# ## 12. Three bugs you will meet
#
# **A letter is missing.** A well-known tutorial calls its pipeline with `trength=0.5`. A function that swallows unknown
# keywords says nothing, and takes its default of 0.8. Read the cell; what would you have noticed?


# %%
def tolerant(prompts, image, generator, strength=0.8, **kwargs):
    """img2img with a friendly signature. Find the bug of whoever calls it."""
    return redrawn(image, prompts, strength, generator)


# %%
meant, got = tolerant(wanted, images, seeded(), strength=0.5), tolerant(wanted, images, seeded(), trength=0.5)
away = [(drawn - images).abs().mean().item() for drawn in (meant, got)]
print(f"strength=0.5 moves the pictures by {away[0]:.3f}, trength=0.5 by {away[1]:.3f}")
assert away[1] > away[0]
try:
    pipe.img2img(wanted[0], images[:1], trength=0.5)
except TypeError as error:
    print("the library:", type(error).__name__, str(error).split(")", 1)[-1].strip())

# %% [markdown]
# **A mask from a paper.** In RePaint's formulas $m = 1$ is what is *known*. Handed to a function in which 1 is *repaint*,
# everything is redrawn but the object. **Expected:** *done* is 0, and *spoilt* is more than five times as high. It is a bug one
# sees at once, in a picture; *says* alone, which is about what it was, would not show it.
#
# **A picture from torchvision.** `ToTensor` gives [0, 1], where pixels are [−1, 1] here. That is inside the range, so no check
# can refuse it: it is a picture, only a pale one. The network has never seen pale ones and repairs them its own way:
# the grounds come out as they were, but things change or move that should not yet: the circle is red, the star is cyan and
# no longer in its place. **Expected** at strength 0.3: about twice as far from the original as it should be.

# %%
inverted = marks(pipe.inpaint(wanted, images, 1 - masks, generator=seeded(), **told))
show_marks({"mask of the right sense": found["blend"], "mask inverted": inverted})
assert inverted["done"] == 0 and inverted["spoilt"] > found["blend"]["spoilt"]
zero_to_one = (images[:4] + 1) / 2
pale = pipe.img2img(wanted[:4], zero_to_one, 0.3, seeded(), **told)
right = pipe.img2img(wanted[:4], images[:4], 0.3, seeded(), **told)
off = [(drawn - images[:4]).abs().mean().item() for drawn in (right, pale)]
print(f"off the original by {off[0]:.3f}, and by {off[1]:.3f} from pixels in [0, 1]")
if LONG:
    assert off[1] > 1.4 * off[0]
md.plot.show_images(torch.cat([right, pale]), columns=4, row_labels=["[−1, 1]", "[0, 1]"])

# %% [markdown]
# ## 13. What we left out
#
# | left out | where to read it |
# |---|---|
# | to invert the picture instead of noising it: the walk back is exact | chapter 18; Song et al. 2021, section 4.3 |
# | a mask found by the model itself, from where two prompts disagree | DiffEdit, Couairon et al. 2023, section 3.2 |
# | attention kept from the original, so that the layout stays | Prompt-to-Prompt, Hertz et al. 2023, section 3 |
# | jumps of several steps in RePaint, in place of one | Lugmayr et al. 2022, section 4.2 |
# | an exact answer to "given the known part", by particles or by a gradient | Trippe et al. 2023; Chung et al. 2023, eq. 16 |
# | depth, edges, poses for a frozen network, by a trained copy of its half | ControlNet, Zhang et al. 2023, section 3 |
# | a decoder that blends at the seam | Avrahami et al. 2023 (Blended Latent Diffusion), section 4.2 |
#
# What you wrote is `redraw_levels` and `small_mask` of `minidiff/pipelines/inputs.py`, `inpainting` of
# `minidiff/diffusion/guidance.py`, `repaint` of `minidiff/diffusion/samplers.py`, and `img2img` and `inpaint` of
# `minidiff/pipelines/text_to_image.py`.
#
# **Next:** img2img throws noise on a picture and hopes. Could one find *the* noise from which it would have come?

# %%
print(f"torch {torch.__version__}, minidiff {md.__version__}")
