"""The text side of Stable Diffusion against transformers: every id of the tokenizer, every number of the encoder."""

import json
import random
import unicodedata

import pytest
import torch

from minidiff.pretrained.clip import load_clip_text
from minidiff.pretrained.tokenizer import Tokenizer

transformers = pytest.importorskip("transformers", reason="the oracle of these tests: pip install -r requirements.txt")
pytestmark = pytest.mark.parity

SIZES = {"vocab_size": 60, "max_position_embeddings": 11, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
         "num_attention_heads": 4, "projection_dim": 24, "bos_token_id": 49, "eos_token_id": 50, "pad_token_id": 1}  # fmt: skip
VISION = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
          "image_size": 8, "patch_size": 4}  # fmt: skip
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}  # relative to the largest number of the answer


def random_weights(model):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * 0.1)
    return model.eval()


def close(ours, theirs):
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
    assert (ours - theirs).abs().max() <= TOLERANCE[ours.dtype] * theirs.abs().max()


@pytest.fixture
def ids(generator):
    ids = torch.randint(3, 49, (3, 11), generator=generator)
    ids[:, 0], ids[0, 4:], ids[1, 7], ids[2, 10] = 49, 50, 50, 50
    ids[0, 2], ids[1, 9] = 55, 55  # added tokens, beyond the end token
    return ids


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("change", [{}, {"hidden_act": "gelu"}, {"eos_token_id": 2}])
def test_text_model(tmp_path, ids, dtype, change):
    model = random_weights(transformers.CLIPTextModel(transformers.CLIPTextConfig(**SIZES | change)))
    model.save_pretrained(tmp_path)
    ours, theirs = load_clip_text(tmp_path, dtype), model.to(dtype)(ids, output_hidden_states=True)
    text = ours(ids)
    close(text.tokens, theirs.last_hidden_state)
    close(text.pooled, theirs.pooler_output)
    for skip in range(3):
        close(ours(ids, skip, final_norm=False).tokens, theirs.hidden_states[-1 - skip])
        close(ours(ids, skip).tokens, model.final_layer_norm(theirs.hidden_states[-1 - skip]))
        close(ours(ids, skip).pooled, theirs.pooler_output)
    close(ours(ids[:, :5]).tokens, theirs.last_hidden_state[:, :5])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_text_model_with_projection(tmp_path, ids, dtype):
    model = random_weights(transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**SIZES)))
    model.save_pretrained(tmp_path)
    ours = load_clip_text(tmp_path, dtype)(ids, skip=1, final_norm=False)
    theirs = model.to(dtype)(ids, output_hidden_states=True)
    close(ours.tokens, theirs.hidden_states[-2])
    close(ours.pooled, theirs.text_embeds)


def test_the_text_half_of_a_whole_clip(tmp_path, ids):
    config = transformers.CLIPConfig(text_config=SIZES, vision_config=VISION, projection_dim=20)
    model = random_weights(transformers.CLIPModel(config))
    model.save_pretrained(tmp_path)
    features = model.get_text_features(ids)
    close(load_clip_text(tmp_path)(ids).pooled, getattr(features, "pooler_output", features))


# The tokenizer

BITS = [
    "'s", "'T", "'Re", "'ll", "don't", "<|", "|>", "<|endoftext|>", "<|startoftext|>", "<|ENDOFTEXT|>", "endoftext", "</w>",
    "!", " ", "  ", "\n", "\r\n", "\t", "\u00a0", "-", "\u3000", "\x85", "\x1c", "\x00", "\u200b", "\u180e", "\ufeff",
    "\u03a3", "\u0391\u03a3", "\u03c2", "\u0130", "\u0131", "A", "I", "\u1e9e", "\u01c5", "\u212a",  # odd in lower case
    "e\u0301", "\u00e9", "a\u0323\u0302", "\u0344", "\u1100\u1161\u11a8", "\u0e01\u0e33", "\u0928\u093f",  # combining
    "\U0001f469\u200d\U0001f680", "\U0001f44d\U0001f3fd", "\U0001f1eb\U0001f1f7", "\u6f22\u5b57",  # an astronaut, a flag
    "9", "42", "\u0663", "\u0967", "\u00bd", "\u2167", "\u4e09", "...", "&amp;", "_", "\ufb01",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """vocab.json and merges.txt as hubs have them, from the vocabulary inside open-clip-torch."""
    clip, folder = Tokenizer.clip(), tmp_path_factory.mktemp("tokenizer")
    (folder / "vocab.json").write_text(json.dumps(clip.vocab, ensure_ascii=False), encoding="utf-8")
    merges = ["#version: 0.2", *map(" ".join, clip.ranks)]
    (folder / "merges.txt").write_text("\n".join(merges) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 77}')
    return folder


@pytest.fixture(scope="module")
def theirs(folder):
    return transformers.CLIPTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def characters(theirs):
    """All characters that both sides know.

    Left out are those without a meaning in Python's Unicode (the two sides would each have its own opinion of them), and
    about a hundred combining marks younger than 2016: the oracle's table for sorting marks is Unicode 9's, ours is Python's.
    """
    known = [chr(c) for c in range(0x110000) if unicodedata.category(chr(c)) not in ("Cn", "Cs", "Co")]
    sort = theirs.backend_tokenizer.normalizer.normalize_str
    pairs = {c: f"a{c}\u0334" for c in known if unicodedata.combining(c) > 1}  # the second mark belongs before the first
    young = {c for c, pair in pairs.items() if sort(pair) != unicodedata.normalize("NFC", pair)}
    assert len(known) > 140_000 and len(young) < 200
    return [c for c in known if c not in young]


def compare(ours, theirs, texts, length):
    options = {"padding": "max_length", "truncation": True, "max_length": length}
    for text, wanted, ids in zip(texts, theirs(texts, **options).input_ids, ours(texts, truncate=True).tolist(), strict=True):
        assert ids == wanted, ascii(text)


def test_every_character(folder, theirs, characters):
    """Between two letters: is it a letter, a digit, a space or a mark, and what is it in lower case? Ideographs: some."""
    ours = Tokenizer.load(folder)
    ours.length = 1000
    alphabets = [c for c in characters if not ("\u3400" <= c < "\ua000" or "\uac00" <= c < "\ud800" or c >= "\U00017000")]
    chosen = alphabets + [c for c in characters if c >= "\U0001b000" and c < "\U00020000"] + characters[::50]
    compare(ours, theirs, [" ".join(f"b{c}b" for c in chosen[i : i + 100]) for i in range(0, len(chosen), 100)], 1000)


def test_ten_thousand_random_texts(folder, theirs, characters):
    ours, rng = Tokenizer.load(folder), random.Random(0)
    words = [token.removesuffix("</w>") for token in list(ours.vocab)[512:-2] if token.isascii()]
    marks = [c for c in characters if unicodedata.combining(c)]
    digits, letters = ([c for c in characters if unicodedata.category(c)[0] == kind] for kind in "NL")
    controls = [c for c in characters if unicodedata.category(c) in ("Cc", "Cf", "Zs", "Zl", "Zp")]
    ascii_only = list(map(chr, range(128)))
    pools = [BITS, BITS, words, ascii_only, characters, [*marks, "a", "\u00ea", "o"], digits, letters, controls]
    texts = []
    for _ in range(10_000):
        mix = rng.sample(pools, rng.randint(1, 4))
        texts.append("".join(rng.choice(rng.choice(mix)) + " " * (rng.random() < 0.2) for _ in range(rng.randint(0, 12))))
    compare(ours, theirs, texts, 77)


def test_decode(folder, theirs):
    ours, rng = Tokenizer.load(folder), random.Random(0)
    for _ in range(1000):
        ids = rng.choices(range(49408), k=rng.randint(0, 8)) + rng.choices(range(512), k=rng.randint(0, 3)) + [49407]
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True), ids


MARK = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}


@pytest.mark.parametrize("others", [
    {"special_tokens_map": {"pad_token": "!"}, "tokenizer_config": {"pad_token": "<|endoftext|>", "model_max_length": 77}},
    {"special_tokens_map": {"pad_token": "<|endoftext|>"}, "tokenizer_config": {"pad_token": "!", "model_max_length": 77}},
    {"tokenizer_config": {"pad_token": "!", "model_max_length": 77, "added_tokens_decoder": {
        "0": {**MARK, "content": "!", "special": True}, "49406": {**MARK, "content": "<|startoftext|>", "special": True},
        "49407": {**MARK, "content": "<|endoftext|>", "special": True}, "49408": {**MARK, "content": "<cat>"}}}},
])  # fmt: skip
def test_folders_that_pad_with_something_else(folder, tmp_path, others):
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    for name, content in others.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    theirs = transformers.CLIPTokenizer.from_pretrained(tmp_path)
    theirs.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved" / "vocab.json").exists()  # the newest versions write tokenizer.json only
    for ours in (Tokenizer.load(tmp_path), Tokenizer.load(tmp_path / "saved")):
        compare(ours, theirs, ["wow! a<cat>b", "!", "a <|endoftext|> !! b", "", *BITS], 77)


def test_a_small_vocabulary_of_another(tmp_path):
    vocab = {t: i for i, t in enumerate(["l", "o", "w", "e</w>", "lo", "low", "w</w>", "<|startoftext|>", "<|endoftext|>"])}
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    (tmp_path / "merges.txt").write_text("#version: 0.2\nl o\nlo w\n")
    theirs = transformers.CLIPTokenizer.from_pretrained(tmp_path)
    compare(Tokenizer.load(tmp_path), theirs, ["lowe low loxw", "xyz lo\u00e9e we"], 77)  # what it lacks is its end token
