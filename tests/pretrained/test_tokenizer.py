"""The tokenizer: ids published elsewhere, what it does with odd prompts, folders old and new, damaged files."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch

from minidiff.pretrained import tokenizer as module
from minidiff.pretrained.tokenizer import BYTES, NAMES, Tokenizer

PUPPY = [49406, 320, 8853, 539, 320, 6829, 49407]
FLOOBLE = [49406, 320, 3086, 539, 320, 4062, 1059, 49407]
VOCAB = {token: i for i, token in enumerate(["!", "a", "b", "c", "a</w>", "b</w>", "c</w>", "!</w>", "ab", "abc</w>",
                                             "<|startoftext|>", "<|endoftext|>"])}  # fmt: skip
MERGES = ["#version: 0.2", "a b", "ab c</w>"]


@pytest.fixture(scope="module")
def clip():
    return Tokenizer.clip()


def write(folder, vocab=VOCAB, merges=MERGES, **others):
    folder.mkdir(exist_ok=True)
    if vocab is not None:
        (folder / "vocab.json").write_text(json.dumps(vocab))
        (folder / "merges.txt").write_text("\n".join(merges) + "\n")
    for name, content in others.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def test_published_ids(clip):
    assert len(clip.vocab) == 49408 and (clip.start, clip.end, clip.pad, clip.length) == (49406, 49407, 49407, 77)
    for prompt, ids in [("A photograph of a puppy", PUPPY), ("A painting of a flooble", FLOOBLE)]:
        assert clip(prompt).tolist() == [ids + [49407] * (77 - len(ids))]


def test_stable_diffusion_2_pads_with_zero():
    clip = Tokenizer.clip(pad="!")
    assert clip("A photograph of a puppy").tolist() == [PUPPY + [0] * 70]
    assert clip("hey!")[0, 2] == 0  # a pad is a special token wherever it stands, in transformers too


def test_a_batch(clip):
    ids = clip(["a", "", "A photograph of a puppy"])
    assert ids.shape == (3, 77) and ids.dtype == torch.int64
    assert ids[:, :3].tolist() == [[49406, 320, 49407], [49406, 49407, 49407], PUPPY[:3]]
    assert clip([]).shape == (0, 77)


def test_pieces_can_be_read(clip):
    assert clip.tokens("A painting of a flooble") == ["a</w>", "painting</w>", "of</w>", "a</w>", "floo", "ble</w>"]
    assert clip.tokens("caf\u00e9 42, it's") == ["caf\u00e9</w>", "4</w>", "2</w>", ",</w>", "it</w>", "'s</w>"]
    endings = [piece for piece in clip.tokens("he's don't we're I've I'm you'll she'd") if "'" in piece]
    assert endings == ["'s</w>", "'t</w>", "'re</w>", "'ve</w>", "'m</w>", "'ll</w>", "'d</w>"]
    assert clip.tokens("\u2603") == ["\\xe2\\x98", "\\x83</w>"]  # a snowman is two pieces, neither of them a character
    assert clip.tokens("x<|endoftext|>") == ["x</w>", "<|endoftext|>"]


def test_case_spaces_and_accents_do_not_matter(clip):
    assert clip.tokens("  A\tPUPPY\n\u3000") == clip.tokens("a puppy")
    assert clip.tokens("cafe\u0301") == clip.tokens("CAF\u00c9") == ["caf\u00e9</w>"]
    assert clip.tokens("\u03a3\u03a3") == clip.tokens("\u03c3\u03c3")  # not the other sigma, which ends a word


def test_decode_gives_the_words_back(clip):
    assert clip.decode(clip("A photograph,  of a PUPPY \u2603 !")[0]) == "a photograph , of a puppy \u2603 !"
    assert clip.decode([]) == ""
    with pytest.raises(ValueError, match="id 50000 is not in this vocabulary of 49408 tokens"):
        clip.decode([320, 50000])


def test_a_prompt_that_does_not_fit_says_which_words(clip):
    assert clip("a " * 75)[0, -2:].tolist() == [320, 49407]  # 75 fit
    with pytest.raises(ValueError, match='77 tokens and 75 fit: "flooble" is too much.*truncate=True'):
        clip("a " * 75 + "flooble")
    with pytest.raises(ValueError, match='76 tokens and 75 fit: "flooble" is too much'):  # its first half would fit
        clip("a " * 74 + "flooble")
    assert clip("a " * 74 + "flooble", truncate=True)[0, -3:].tolist() == [320, 4062, 49407]
    with pytest.raises(ValueError, match=r'b{200}\.\.\." is too much'):
        clip("a " * 75 + "b" * 1000)


@pytest.mark.parametrize("texts", [None, ["a", None], [["a"]], b"a"])
def test_what_is_not_text_is_refused(clip, texts):
    with pytest.raises(ValueError, match="give a str or a list of str"):
        clip(texts)


def test_half_a_utf_16_pair_is_refused(clip):
    with pytest.raises(ValueError, match="surrogates not allowed"):
        clip("\ud83d")


def test_a_very_long_word_takes_no_time(clip):
    assert len(clip.tokens("abcdefghij" * 10_000)) > 10_000  # joined pair by pair, this would take minutes


def test_bytes_have_names():
    assert len(NAMES) == len(BYTES) == 256 and [NAMES[BYTES[name]] for name in BYTES] == list(BYTES)
    assert NAMES[ord("a")] == "a" and NAMES[ord(" ")] == "\u0120" and NAMES[0] == "\u0100"
    assert not any(name.isspace() or not name.isprintable() for name in BYTES)


def test_the_heavy_package_is_not_imported(monkeypatch):
    monkeypatch.delitem(sys.modules, "open_clip", raising=False)
    Tokenizer.clip()
    assert "open_clip" not in sys.modules


def test_a_folder(tmp_path):
    tokenizer = Tokenizer.load(write(tmp_path))
    assert tokenizer("abc ab!")[0, :6].tolist() == [10, 9, 1, 5, 7, 11]
    assert (tokenizer.pad, tokenizer.length) == (11, 77)


@pytest.mark.parametrize("others, pad, length", [
    ({"tokenizer_config": {"pad_token": "!", "model_max_length": 5}}, 0, 5),
    ({"tokenizer_config": {"pad_token": "<|endoftext|>"}, "special_tokens_map": {"pad_token": "!"}}, 0, 77),
    ({"special_tokens_map": {"pad_token": {"content": "!", "lstrip": False}}}, 0, 77),
    ({"tokenizer_config": {"pad_token": None, "model_max_length": 1000000000000000019884624838656}}, 11, 77),
])  # fmt: skip
def test_padding_and_length_of_a_folder(tmp_path, others, pad, length):
    tokenizer = Tokenizer.load(write(tmp_path, **others))
    assert tokenizer("a")[0].tolist() == [10, 4, 11] + [pad] * (length - 3)


@pytest.mark.parametrize("merges", [["a b", "ab c</w>"], [["a", "b"], ["ab", "c</w>"]]])
def test_a_folder_with_a_fast_tokenizer_only(tmp_path, merges):
    fast = {"model": {"type": "BPE", "vocab": VOCAB, "merges": merges}, "added_tokens": [{"id": 12, "content": "<cat>"}]}
    tokenizer = Tokenizer.load(write(tmp_path, None, tokenizer=fast))
    assert tokenizer("abc <cat>ab")[0, :6].tolist() == [10, 9, 12, 1, 5, 11]


def test_tokens_that_were_added(tmp_path):
    old = {"added_tokens": {"<cat>": 12}}
    new = {"tokenizer_config": {"added_tokens_decoder": {"12": {"content": "<cat>"}}}}
    for name, others in {"old": old, "new": new}.items():
        tokenizer = Tokenizer.load(write(tmp_path / name, **others))
        assert tokenizer.tokens("ab<cat>abc") == ["a", "b</w>", "<cat>", "abc</w>"]


def test_missing_files(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="vocab.json does not exist: name the folder of a CLIP tokenizer"):
        Tokenizer.load(tmp_path)
    (write(tmp_path) / "merges.txt").unlink()
    with pytest.raises(FileNotFoundError, match="merges.txt does not exist"):
        Tokenizer.load(tmp_path)
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install open-clip-torch"):
        Tokenizer.clip()


@pytest.mark.parametrize("change, match", [
    ({"merges": ["a b", "ab"]}, r"merges.txt is damaged: merge 2 is \('ab',\)"),
    ({"merges": ["a b", "b c"]}, "damaged: 'bc' is not in it"),
    ({"vocab": {"a": 0}}, r"damaged: '<\|startoftext\|>' is not in it \(5 such\)"),
    ({"vocab": ["a"]}, "vocab.json is damaged: it holds no table"),
    ({"tokenizer_config": {"pad_token": "[PAD]"}}, r"damaged: '\[PAD\]' is not in it"),
    ({"vocab": None, "tokenizer": {"model": None}}, "tokenizer.json holds no byte-pair encoding"),
])  # fmt: skip
def test_damaged_files(tmp_path, change, match):
    with pytest.raises(ValueError, match=match):
        Tokenizer.load(write(tmp_path, **change))


@pytest.mark.parametrize("damage", [
    lambda data: data[:1000], lambda data: b"text", lambda data: data[:500] + b"????" + data[504:],
])  # fmt: skip
def test_a_damaged_vocabulary(tmp_path, monkeypatch, damage):
    file = "bpe_simple_vocab_16e6.txt.gz"
    spec = module.find_spec("open_clip")
    with open(f"{spec.submodule_search_locations[0]}/{file}", "rb") as source:
        (tmp_path / file).write_bytes(damage(source.read()))
    spoilt = SimpleNamespace(submodule_search_locations=[str(tmp_path)])  # its own list is that of sys.modules
    monkeypatch.setattr(module, "find_spec", lambda name: spoilt)
    with pytest.raises(ValueError, match="gz is damaged .*: reinstall open-clip-torch"):
        Tokenizer.clip()
