"""CLIP whole against transformers' CLIPModel: both towers, their cosines, the loss; and the tokenizer for a list of words."""

import random

import pytest
import torch

from minidiff.data.captions import Captioned
from minidiff.data.grammar import WORDS
from minidiff.nets import CLIP, contrastive_loss
from minidiff.nets.clip_image import MEAN, STD
from minidiff.pretrained import Tokenizer, load_clip, load_clip_text, words_tokenizer
from minidiff.pretrained.clip import image_options, options

transformers = pytest.importorskip("transformers", reason="the oracle of these tests: pip install -r requirements.txt")
pytestmark = pytest.mark.parity

TEXT = {"vocab_size": 60, "max_position_embeddings": 11, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "bos_token_id": 58, "eos_token_id": 59, "pad_token_id": 1}  # fmt: skip
VISION = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 3,
          "image_size": 20, "patch_size": 5}  # fmt: skip
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}  # relative to the largest number of the answer


def close(ours, theirs):
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
    assert (ours - theirs).abs().max() <= TOLERANCE[ours.dtype] * theirs.abs().max()


@pytest.fixture(params=["quick_gelu", "gelu"])
def model(request):
    config = transformers.CLIPConfig(text_config=TEXT | {"hidden_act": request.param},
                                     vision_config=VISION | {"hidden_act": request.param}, projection_dim=20)  # fmt: skip
    model, generator = transformers.CLIPModel(config), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * 0.1)
    return model.eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_clip_model(tmp_path, model, dtype, generator):
    model.save_pretrained(tmp_path)
    ours, model = load_clip(tmp_path, dtype), model.to(dtype)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in model.parameters())
    ids = torch.randint(3, 58, (4, 11), generator=generator)
    ids[:, 0], ids[0, 4:], ids[1, 7], ids[2:, 10] = 58, 59, 59, 59
    images = torch.rand(4, 3, 20, 20, generator=generator, dtype=dtype) * 2 - 1
    mean, std = (torch.tensor(rgb, dtype=dtype).view(3, 1, 1) for rgb in (MEAN, STD))
    theirs = model(input_ids=ids, pixel_values=((images + 1) / 2 - mean) / std, return_loss=True)
    close(ours.encode_image(images), theirs.image_embeds)
    close(ours.encode_text(ids), theirs.text_embeds)
    close(ours(images, ids), theirs.logits_per_image)
    close(contrastive_loss(ours(images, ids)), theirs.loss)
    close(ours.image(images), theirs.vision_model_output.pooler_output)
    close(ours.text(ids).pooled, theirs.text_model_output.pooler_output)
    close(load_clip_text(tmp_path, dtype)(ids).tokens, theirs.text_model_output.last_hidden_state)


def test_means_are_those_of_their_preprocessor():
    theirs = transformers.CLIPImageProcessor()
    assert tuple(theirs.image_mean) == MEAN and tuple(theirs.image_std) == STD


def test_defaults_of_a_config_that_says_nothing():
    with torch.device("meta"):
        theirs = transformers.CLIPModel(transformers.CLIPConfig())
        ours = CLIP(options({}), image_options({}))
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters()) == 151_277_313


def test_words_tokenizer_is_a_clip_tokenizer(tmp_path):
    ours, rng = words_tokenizer(WORDS), random.Random(0)
    ours.save(tmp_path)
    theirs, loaded = transformers.CLIPTokenizer.from_pretrained(tmp_path), Tokenizer.load(tmp_path)
    letters = "abcdefghilmnoprstuvwy, .!9\u00e9\u2603'"
    texts = [Captioned(100, size=8).plan(i)[1].text for i in range(100)]
    texts += [" ".join(rng.choice(WORDS) + rng.choice(["", "", ",", rng.choice(WORDS)]) for _ in range(6)) for _ in range(200)]
    texts += ["".join(rng.choice(letters) for _ in range(rng.randint(0, 20))) for _ in range(200)]
    ours.words = frozenset()  # let it take any word
    wanted = theirs(texts, padding="max_length", truncation=True, max_length=32).input_ids
    assert ours(texts, truncate=True).tolist() == wanted
    assert theirs.model_max_length == loaded.length == 32 and theirs.vocab_size == len(loaded.vocab)
    assert loaded(texts[:100]).tolist() == wanted[:100]
