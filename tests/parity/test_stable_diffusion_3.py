"""Pictures of Stable Diffusion 3 against diffusers': the same folder, prompts and noise; and folders that are refused."""

import json
import shutil

import pytest
import torch

import minidiff as md

diffusers = pytest.importorskip("diffusers", reason="diffusers is the oracle of these tests: pip install -r requirements.txt")
from tiny_sd import pictures, pipeline  # noqa: E402
from tiny_sd3 import pipeline_3, their_picture  # noqa: E402

pytestmark = pytest.mark.parity
PROMPTS, NEGATIVE = ["a photograph of a puppy", "a painting of a flooble"], ["blurry", ""]
STYLES = [3, 3.5]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folder and both pipelines of a style, made once."""
    kept = {}

    def get(style=3):
        if style not in kept:
            folder = tmp_path_factory.mktemp("sd3") / "model"
            kept[style] = folder, pipeline_3(folder, style), md.StableDiffusion3.from_pretrained(folder)
            kept[style][2].progress = False
        return kept[style]

    return get


@pytest.fixture
def folder(made, tmp_path):
    """A copy that a test may spoil."""
    return shutil.copytree(made()[0], tmp_path / "copy")


def seeded():
    return torch.Generator().manual_seed(7)


def agree(ours, theirs):
    """Within 1e-4. What difference there is comes from t: theirs is rounded to float32 on the way, and off by up to 4e-5."""
    assert ours.shape == theirs.shape
    assert ours.std() > 0.05 and (ours.abs() < 1).float().mean() > 0.5  # a picture, not a wall at the edge of [-1, 1]
    assert (ours - theirs).abs().max() <= 1e-4


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("zeros", [256, 77])
def test_what_the_prompts_become(made, monkeypatch, style, zeros):
    _, theirs, ours = made(style)
    told = {} if zeros == 256 else {"max_sequence_length": zeros}
    monkeypatch.setattr(ours, "t5_tokens", zeros)
    with torch.no_grad():
        tokens, _, pooled, _ = theirs.encode_prompt(PROMPTS, None, None, do_classifier_free_guidance=False, **told)
        said = ours.encode_text(PROMPTS)
    torch.testing.assert_close(said.tokens, tokens, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(said.pooled, pooled, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("guidance_scale", [7.0, 1.0])
@pytest.mark.parametrize("style", STYLES)
def test_text_to_image(made, style, guidance_scale):
    _, theirs, ours = made(style)
    told = {"negative_prompt": NEGATIVE, "guidance_scale": guidance_scale, "height": 16, "width": 20}
    wanted = their_picture(theirs, PROMPTS, num_inference_steps=7, generator=seeded(), **told)
    agree(ours(PROMPTS, steps=7, generator=seeded(), **told), wanted)


def test_as_they_come(made):
    _, theirs, ours = made()
    agree(ours(PROMPTS[0], generator=seeded()), their_picture(theirs, PROMPTS[0], generator=seeded()))


# How many steps there are, they round up and we down: strengths that leave nothing to round.
@pytest.mark.parametrize("strength", [0.6, 1.0])
@pytest.mark.parametrize("style", STYLES)
def test_image_to_image(made, style, strength):
    _, theirs, ours = made(style)
    theirs = diffusers.StableDiffusion3Img2ImgPipeline(**theirs.components)
    theirs.set_progress_bar_config(disable=True)
    told = {"strength": strength, "guidance_scale": 3.0}
    wanted = their_picture(theirs, PROMPTS, image=pictures(), height=16, width=16, num_inference_steps=10, generator=seeded(),
                           **told)  # fmt: skip
    agree(ours.img2img(PROMPTS, pictures(), steps=10, generator=seeded(), **told), wanted)


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_inpainting(made, strength):
    _, theirs, ours = made()
    theirs = diffusers.StableDiffusion3InpaintPipeline(**theirs.components)
    theirs.set_progress_bar_config(disable=True)
    image, mask = pictures(), torch.zeros(1, 1, 16, 16)
    mask[:, :, 4:12, 6:] = 1
    told = {"strength": strength, "guidance_scale": 3.0}
    with torch.no_grad():
        latents = theirs(PROMPTS[0], image=image, mask_image=mask, height=16, width=16, num_inference_steps=8,
                         generator=seeded(), output_type="latent", **told).images  # fmt: skip
    wanted = ours.decode(latents)  # where they, in this pipeline alone, forget to add the VAE's shift
    agree(ours.inpaint(PROMPTS[0], image, mask, steps=8, generator=seeded(), paste=False, **told), wanted)


def test_what_comes_out_of_a_folder(made):
    pipe = made()[2]
    assert pipe.size == 16
    assert (pipe.predicts, pipe.schedule.kind, pipe.schedule.shift) == ("flow", "flow", 3.0)
    assert (pipe.tokenizer.pad, pipe.tokenizer_2.pad) == (49407, 0)
    nets = pipe.mmdit, pipe.vae, pipe.text_encoder, pipe.text_encoder_2
    assert not any(net.training or any(p.is_meta for p in net.parameters()) for net in nets)


def test_128_latents_a_side_where_no_size_is_given(folder):
    edit_json(folder / "transformer" / "config.json", sample_size=None)
    assert md.StableDiffusion3.from_pretrained(folder).size == 128 * 2  # by the stride of this VAE


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_precision_draws_nearly_the_same(made, dtype):
    folder, _, wanted = made()
    got = md.StableDiffusion3.from_pretrained(folder, dtype=dtype)
    got.progress = False
    noise = torch.randn(1, 16, 8, 8, generator=seeded())
    ours, theirs = (pipe("a puppy", steps=3, latents=noise) for pipe in (got, wanted))
    assert ours.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert (ours - theirs).abs().mean() < {torch.float16: 0.01, torch.bfloat16: 0.1, torch.float64: 1e-4}[dtype]


def edit_json(file, **changes):
    about = json.loads(file.read_text())
    about.update(changes)
    file.write_text(json.dumps({k: v for k, v in about.items() if v is not ...}))


def test_a_third_text_encoder_is_left_where_it_is(folder):
    edit_json(folder / "model_index.json", text_encoder_3=["transformers", "T5EncoderModel"],
              tokenizer_3=["transformers", "T5TokenizerFast"])  # fmt: skip
    md.StableDiffusion3.from_pretrained(folder)  # and it is not even there
    edit_json(folder / "model_index.json", text_encoder_3=..., tokenizer_3=..., _class_name="StableDiffusion3Img2ImgPipeline")
    md.StableDiffusion3.from_pretrained(folder)


@pytest.mark.parametrize("changes, error, told", [
    ({"_class_name": "FluxPipeline"}, ValueError, '"FluxPipeline": minidiff reads StableDiffusionPipeline and StableDiff'),
    ({"transformer": ["diffusers", "FluxTransformer2DModel"]}, ValueError, '"FluxTransformer2DModel" as its transformer'),
    ({"text_encoder_2": ["transformers", "CLIPTextModel"]}, ValueError, '"CLIPTextModel" as its text_encoder_2'),
    ({"scheduler": ["diffusers", "EulerDiscreteScheduler"]}, ValueError, '"EulerDiscreteScheduler" as its scheduler'),
    ({"tokenizer_2": ...}, FileNotFoundError, "has no tokenizer_2"),
    ({"controlnet": ["diffusers", "SD3ControlNetModel"]}, ValueError, "lists controlnet"),
])  # fmt: skip
def test_an_index_of_what_we_do_not_have(folder, changes, error, told):
    edit_json(folder / "model_index.json", **changes)
    with pytest.raises(error, match=told):
        md.StableDiffusion3.from_pretrained(folder)


def test_each_class_names_the_other(folder, tmp_path):
    with pytest.raises(ValueError, match=r'"StableDiffusion3Pipeline": load it by StableDiffusion3\.from_pretrained'):
        md.StableDiffusion.from_pretrained(folder)
    pipeline(tmp_path / "one" / "model")
    with pytest.raises(ValueError, match=r'"StableDiffusionPipeline": load it by StableDiffusion\.from_pretrained'):
        md.StableDiffusion3.from_pretrained(tmp_path / "one" / "model")


@pytest.mark.parametrize("part, changes, told", [
    ("tokenizer_2/tokenizer_config", {"model_max_length": 99}, "99 tokens and its text encoder reads 77"),
    ("text_encoder/config", {"architectures": ["CLIPTextModel"]}, "text_projection"),
    ("scheduler/scheduler_config", {"use_dynamic_shifting": True}, "use_dynamic_shifting = True"),
])  # fmt: skip
def test_parts_that_do_not_belong_together(folder, part, changes, told):
    edit_json(folder / f"{part}.json", **changes)
    with pytest.raises(ValueError, match=told):
        md.StableDiffusion3.from_pretrained(folder)


def test_networks_that_do_not_belong_together(folder, tmp_path):
    other = {"in_channels": 16, "out_channels": 16, "num_layers": 1, "attention_head_dim": 8, "num_attention_heads": 2,
             "caption_projection_dim": 16, "pos_embed_max_size": 4, "sample_size": 4}  # fmt: skip
    for read, told in (
        ({"joint_attention_dim": 40, "pooled_projection_dim": 44}, "write 56 numbers per token and its MMDiT reads 40"),
        ({"joint_attention_dim": 72, "pooled_projection_dim": 20}, "write 44 numbers per text and its MMDiT reads 20"),
        ({"joint_attention_dim": 72, "pooled_projection_dim": 44, "in_channels": 4, "out_channels": 4},
         "VAE has 16 latent channels and its MMDiT draws 4"),
    ):  # fmt: skip
        shutil.rmtree(folder / "transformer")
        diffusers.SD3Transformer2DModel(**{**other, **read}).save_pretrained(folder / "transformer")
        with pytest.raises(ValueError, match=told):
            md.StableDiffusion3.from_pretrained(folder)
