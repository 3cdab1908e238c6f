"""A tokenizer for a small world: byte-pair encoding learned from a list of words, until each of them is one token."""

from collections import Counter
from collections.abc import Iterable
from itertools import pairwise

from .tokenizer import BYTES, END, START, WORDS, Tokenizer, byte_pairs


def words_tokenizer(words: Iterable[str], length: int = 32) -> Tokenizer:
    """A Tokenizer of CLIP's kind in which every one of `words` is one token; it refuses all other words, by name.

    Another word would be no trouble to encode, in pieces down to its bytes, but no network trained on these has ever seen
    those pieces. length: tokens of a row, start and end among them. ValueError for what is no single lower-case word.
    """
    words = sorted(set(words))
    odd = [word for word in words if WORDS.findall(word.lower()) != [word]]
    if odd or not words:
        raise ValueError(f"{odd[0]!r} is not one word in lower case: give them one by one" if odd else "no words: give some")
    merges = learn(words)
    tokens = [*BYTES, *(name + "</w>" for name in BYTES), *map("".join, merges), START, END]
    return Tokenizer({token: i for i, token in enumerate(tokens)}, merges, length=length, words=words)


def learn(words: list[str]) -> list[tuple[str, str]]:
    """The merges after which every word is one piece: again and again, the most frequent pair of neighbours is joined.

    (Sennrich et al. 2016, algorithm 1, each word counted once; of equally frequent pairs the last in the alphabet.)
    """
    ranks: dict[tuple[str, str], int] = {}
    while pairs := Counter(pair for word in words for pair in pairwise(byte_pairs(word, ranks))):
        ranks[max(pairs, key=lambda pair: (pairs[pair], pair))] = len(ranks)
    return list(ranks)
