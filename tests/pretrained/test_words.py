"""A tokenizer for a list of words: one token each, folders that give it back, and words that were never learned."""

import json

import pytest

from minidiff.data.grammar import WORDS
from minidiff.pretrained import Tokenizer, words_tokenizer
from minidiff.pretrained.tokenizer import BYTES, END, START
from minidiff.pretrained.words import learn

AWKWARD = ["above", "bottom", "abc", "bc", "bca", "abca", "aaa", "aaaa", "a", "\u00e9t\u00e9", ",", "7", "'s"]


@pytest.mark.parametrize("words", [WORDS, AWKWARD, AWKWARD[::-1], ["a"]])
def test_every_word_is_one_token(words):
    tokenizer = words_tokenizer(words)
    assert [tokenizer.tokens(word) for word in words] == [[word + "</w>"] for word in words]
    ids = tokenizer(" ".join(words[:12]))[0]
    assert len(set(ids[1 : len(words[:12]) + 1].tolist())) == len(words[:12])


def test_it_is_laid_out_as_clips():
    tokenizer = words_tokenizer(["low", "slow"])
    tokens = list(tokenizer.vocab)
    assert tokens[:256] == list(BYTES) and tokens[256:512] == [name + "</w>" for name in BYTES]
    assert tokens[512:] == ["ow</w>", "low</w>", "slow</w>", START, END]  # "o w" and "l ow" come twice, "s low" once
    assert sorted(tokenizer.vocab.values()) == list(range(len(tokens)))
    assert tokenizer("slow LOW")[0].tolist() == [515, 514, 513] + 29 * [516]


def test_the_most_frequent_pair_is_joined_first():
    assert learn(["ab", "cab", "dab", "cd"]) == [("a", "b</w>"), ("d", "ab</w>"), ("c", "d</w>"), ("c", "ab</w>")]


def test_words_that_were_never_learned():
    tokenizer = words_tokenizer(["a", "red", "star"])
    assert tokenizer(["", "A red STAR"]).shape == (2, 32)
    with pytest.raises(ValueError, match='never learned "cat stars": it knows a red star$'):
        tokenizer(["a red cat", "a star", "stars cat"])
    with pytest.raises(ValueError, match='"b c d e f" and 1 more: it knows a red star'):
        tokenizer("b c d e f g")
    assert tokenizer.unknown(["a <|endoftext|> cat", "red"]) == ["cat"] and tokenizer.tokens("cat") == ["c", "a", "t</w>"]
    with pytest.raises(ValueError, match='40 tokens and 30 fit: "star'):
        tokenizer("star " * 40)
    assert Tokenizer.clip().unknown(["flooble"]) == []


@pytest.mark.parametrize("tokenizer", [
    words_tokenizer(["a", "red", "star", "\u00e9t\u00e9"], length=9),
    words_tokenizer(["a", "red", "star", "!"], length=9),
    Tokenizer({**words_tokenizer(["a"]).vocab}, [], pad="!", length=9, added={"<cat>": 514, "<dog>": 515}),
])  # fmt: skip
def test_a_saved_folder_gives_it_back(tmp_path, tokenizer):
    tokenizer.save(tmp_path / "new" / "folder")
    again = Tokenizer.load(tmp_path / "new" / "folder")
    for name in ("vocab", "ranks", "words", "special", "pad", "length", "start", "end"):
        assert getattr(again, name) == getattr(tokenizer, name), name
    assert again("a")[0].tolist() == tokenizer("a")[0].tolist()
    assert not list((tmp_path / "new" / "folder").glob("*.part"))


def test_clips_own_can_be_saved(tmp_path):
    clip = Tokenizer.clip(pad="!")
    clip.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert again.vocab == clip.vocab and again.ranks == clip.ranks and again.pad == 0 and not again.words
    assert "words" not in json.loads((tmp_path / "tokenizer_config.json").read_text())


@pytest.mark.parametrize("words, match", [
    (["red", "left of"], "'left of' is not one word"), (["Red"], "'Red' is not one word"), (["don't"], "\"don't\" is not"),
    (["42"], "'42'"), ([""], "''"), ([], "no words"),
])  # fmt: skip
def test_what_is_no_word_is_refused(words, match):
    with pytest.raises(ValueError, match=match):
        words_tokenizer(words)
