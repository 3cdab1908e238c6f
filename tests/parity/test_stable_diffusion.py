"""Pictures of whole pipelines against diffusers': the same folder, the same prompt, the same noise."""

import pytest
import torch

from minidiff import StableDiffusion

diffusers = pytest.importorskip("diffusers", reason="diffusers is the oracle of these tests: pip install -r requirements.txt")
from tiny_sd import SCHEDULER, pictures, pipeline  # noqa: E402

pytestmark = pytest.mark.parity

SAMPLERS = {
    "DDIM": (diffusers.DDIMScheduler, {"clip_sample": False, "set_alpha_to_one": False}),
    "PNDM": (diffusers.PNDMScheduler, {"skip_prk_steps": True, "set_alpha_to_one": False}),
    "LMS": (diffusers.LMSDiscreteScheduler, {"timestep_spacing": "leading"}),
    "Euler": (diffusers.EulerDiscreteScheduler, {"timestep_spacing": "leading"}),
    "DPM++ 2M": (diffusers.DPMSolverMultistepScheduler, {"timestep_spacing": "leading"}),
}
PROMPTS = ["a photograph of a puppy", "a painting of a flooble"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Both pipelines of a style, made once."""
    kept = {}

    def get(style=1, in_channels=4):
        if (style, in_channels) not in kept:
            folder = tmp_path_factory.mktemp("sd") / "model"
            kept[style, in_channels] = pipeline(folder, style, in_channels), StableDiffusion.from_pretrained(folder)
        return kept[style, in_channels]

    return get


def swap(pipes, name, tmp_path):
    """Both pipelines with another scheduler: theirs by from_config, ours by reading the folder it saves."""
    theirs, ours = pipes
    kind, options = SAMPLERS[name]
    predicts = {"eps": "epsilon", "v": "v_prediction"}[ours.predicts]
    theirs.scheduler = kind(**SCHEDULER, **options, prediction_type=predicts)
    theirs.save_pretrained(tmp_path / "swapped")
    ours = StableDiffusion.from_pretrained(tmp_path / "swapped")
    ours.progress = False
    return theirs, ours


def seeded():
    return torch.Generator().manual_seed(7)


def agree(ours, theirs):
    theirs = 2 * theirs.images.permute(0, 3, 1, 2) - 1 if theirs.images.shape[-1] == 3 else 2 * theirs.images - 1
    assert ours.shape == theirs.shape
    assert ours.std() > 0.05  # a picture, not a wall at the edge of [-1, 1]
    furthest = (ours - theirs).abs().max().item()
    assert furthest <= 1e-4


@torch.no_grad()
def their_image(pipe, *args, **options):
    out = pipe(*args, output_type="np", **options)
    out.images = torch.from_numpy(out.images)
    return out


@pytest.mark.parametrize("style", [1, 2])
@pytest.mark.parametrize("name", SAMPLERS)
def test_text_to_image(made, tmp_path, style, name):
    theirs, ours = swap(made(style), name, tmp_path)
    wanted = their_image(theirs, PROMPTS, negative_prompt=["blurry", ""], num_inference_steps=7, guidance_scale=5.0,
                         generator=seeded())  # fmt: skip
    agree(ours(PROMPTS, negative_prompt=["blurry", ""], steps=7, guidance_scale=5.0, generator=seeded()), wanted)


@pytest.mark.parametrize("layers", [("mid",), ("mid", "up")])
@pytest.mark.parametrize("scale", [5.0, 1.0])
def test_perturbed_attention(made, tmp_path, layers, scale):
    theirs, ours = swap(made(2), "DDIM", tmp_path)
    ours.pag_layers = layers
    theirs = diffusers.StableDiffusionPAGPipeline(**diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "swapped")
                                                  .components, pag_applied_layers=list(layers),
                                                  requires_safety_checker=False)  # fmt: skip
    theirs.set_progress_bar_config(disable=True)
    told = {"guidance_scale": scale, "pag_scale": 3.0}
    wanted = their_image(theirs, PROMPTS, num_inference_steps=5, generator=seeded(), **told)
    drawn = ours(PROMPTS, steps=5, generator=seeded(), **told)
    agree(drawn, wanted)
    without = ours(PROMPTS, steps=5, generator=seeded(), guidance_scale=scale)
    assert (drawn - without).abs().max() > 100 * 1e-4


def test_other_sizes(made, tmp_path):
    theirs, ours = swap(made(1), "DDIM", tmp_path)
    wanted = their_image(theirs, PROMPTS[0], num_inference_steps=3, height=24, width=40, generator=seeded())
    agree(ours(PROMPTS[0], steps=3, height=24, width=40, generator=seeded()), wanted)


@pytest.mark.parametrize("style", [1, 2])
# From the middle of a walk diffusers' PNDM takes one step twice, and its LMS weights answers that it does not have.
@pytest.mark.parametrize("name", ["DDIM", "Euler", "DPM++ 2M"])
def test_image_to_image(made, tmp_path, style, name):
    theirs, ours = swap(made(style), name, tmp_path)
    theirs = diffusers.StableDiffusionImg2ImgPipeline(**theirs.components, requires_safety_checker=False)
    theirs.set_progress_bar_config(disable=True)
    image = pictures()
    wanted = their_image(theirs, PROMPTS, image, strength=0.6, num_inference_steps=10, guidance_scale=3.0, generator=seeded())
    agree(ours.img2img(PROMPTS, image, strength=0.6, steps=10, guidance_scale=3.0, generator=seeded()), wanted)


@pytest.mark.parametrize("strength", [1.0, 0.5])
@pytest.mark.parametrize("style", [1, 2])
@pytest.mark.parametrize("in_channels", [9, 4])
def test_inpainting(made, tmp_path, in_channels, style, strength):
    pipes = made(style, in_channels)
    theirs, ours = swap(pipes, "DDIM", tmp_path)
    theirs = diffusers.StableDiffusionInpaintPipeline(**theirs.components, requires_safety_checker=False)
    theirs.set_progress_bar_config(disable=True)
    image, mask = pictures(), torch.zeros(1, 1, 16, 16)
    mask[:, :, 4:12, 6:] = 1
    told = {"strength": strength, "guidance_scale": 3.0, "generator": seeded()}
    wanted = their_image(theirs, PROMPTS[0], image, mask, num_inference_steps=8, height=16, width=16, **told)
    agree(ours.inpaint(PROMPTS[0], image, mask, steps=8, paste=False, **{**told, "generator": seeded()}), wanted)


@pytest.mark.parametrize("style", [1, 2])
@pytest.mark.parametrize("name", ["DDIM", "Euler"])
def test_depth_to_image(made, tmp_path, style, name):
    theirs, ours = swap(made(style, 5), name, tmp_path)
    parts = {k: theirs.components[k] for k in ("vae", "text_encoder", "tokenizer", "unet", "scheduler")}
    theirs = diffusers.StableDiffusionDepth2ImgPipeline(**parts, depth_estimator=None, feature_extractor=None)
    theirs.set_progress_bar_config(disable=True)
    image, depth = pictures(), 100 * pictures(seed=6)[:, :1].exp()
    wanted = their_image(theirs, PROMPTS[0], image, depth_map=depth[:, 0], strength=0.7, num_inference_steps=10,
                         guidance_scale=3.0, generator=seeded())  # fmt: skip
    agree(ours.depth2img(PROMPTS[0], image, depth, strength=0.7, steps=10, guidance_scale=3.0, generator=seeded()), wanted)
