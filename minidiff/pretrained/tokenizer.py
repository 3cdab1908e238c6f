"""Words into numbers: the tokenizer of CLIP, byte-pair encoding (Sennrich et al. 2016), lower-cased, over bytes.

A prompt is split into words, a word into the bytes of its UTF-8, and the bytes are joined again, pair by pair, in the order
in which the pairs were learned. Frequent words end as one token, rare ones as several, and none is unknown.
"""

import gzip
import json
import unicodedata
import zlib
from collections.abc import Collection, Iterable
from importlib.util import find_spec
from itertools import accumulate, pairwise
from pathlib import Path

import regex
import torch
from torch import Tensor

from ..training.checkpoint import read_json, write_file

START, END, LENGTH = "<|startoftext|>", "<|endoftext|>", 77
WORD = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"  # English endings, letters, one digit, anything else
CHUNKS, WORDS = regex.compile(r"<\|(?:start|end)oftext\|>|" + WORD), regex.compile(WORD)
MERGES = 49_408 - 2 * 256 - 2  # of the 262,144 in the file, those CLIP was trained with: its tokens less bytes, start and end
HINT = "name the folder of a CLIP tokenizer: vocab.json and merges.txt, or tokenizer.json"

# A vocabulary file is text, so each byte needs a character that can be seen: its own of Latin-1 where that prints, and for the
# other 68 those from 256 on. In this order the bytes are the first 256 tokens.
_PRINTS = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
_HIDDEN = [byte for byte in range(256) if byte not in _PRINTS]
NAMES = {byte: chr(byte) for byte in _PRINTS} | {byte: chr(256 + i) for i, byte in enumerate(_HIDDEN)}
BYTES = {name: byte for byte, name in NAMES.items()}


class Tokenizer:
    """tokenizer(texts) -> ids (B, 77) int64: start, the words, end, padding. Make one by Tokenizer.clip() or .load(folder).

    vocab: piece -> id; merges: pairs of pieces in the order they were learned; pad: the token that fills up, which is
    <|endoftext|> in Stable Diffusion 1 and "!" in 2; added: further tokens, name -> id. These, start, end and pad are found
    in a text where they stand exactly so. words: all that its text encoder ever learned, if it is a small one; a text with
    any other is refused. ValueError for a vocabulary without start, end or pad, or that its merges leave.
    """

    def __init__(self, vocab: dict[str, int], merges: Iterable[tuple[str, str]], pad: str = END, length: int = LENGTH,
                 added: dict[str, int] | None = None, words: Collection[str] | None = None):  # fmt: skip
        self.vocab, self.words = vocab | (added or {}), frozenset(words or ())
        self.ranks = {tuple(pair): rank for rank, pair in enumerate(merges)}
        lost = [token for token in (START, END, pad, *map("".join, self.ranks)) if token not in self.vocab]
        if lost:
            raise ValueError(f"the vocabulary is damaged: {lost[0]!r} is not in it ({len(lost)} such). {HINT}")
        self.start, self.end, self.pad, self.length = self.vocab[START], self.vocab[END], self.vocab[pad], length
        self.special = {START, END, pad, *(added or {})}
        self.names = {i: token for token, i in self.vocab.items()}
        self.cache = {token: [self.vocab[token]] for token in self.special}  # word -> ids, of all words met so far
        self._special = regex.compile("(" + "|".join(map(regex.escape, sorted(self.special, key=len, reverse=True))) + ")")

    @classmethod
    def clip(cls, pad: str = END, length: int = LENGTH) -> "Tokenizer":
        """CLIP's own vocabulary of 49,408 tokens, from the file inside open-clip-torch: no network, no folder.

        FileNotFoundError without open-clip-torch, ValueError for a damaged file.
        """
        package = find_spec("open_clip")  # found, not imported: that would take seconds
        path = Path(package.submodule_search_locations[0] if package else "open_clip") / "bpe_simple_vocab_16e6.txt.gz"
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist: pip install open-clip-torch, in which it comes")
        try:
            lines = gzip.decompress(path.read_bytes()).decode().split("\n", MERGES + 1)
        except (OSError, EOFError, ValueError, zlib.error) as error:
            raise ValueError(f"{path} is damaged ({error}): reinstall open-clip-torch") from error
        merges = _pairs(lines[1 : MERGES + 1], path)  # after a line with its version
        tokens = [*BYTES, *(name + "</w>" for name in BYTES), *map("".join, merges), START, END]
        return cls({token: i for i, token in enumerate(tokens)}, merges, pad, length)

    @classmethod
    def load(cls, folder: str | Path) -> "Tokenizer":
        """The tokenizer of a folder: vocab.json and merges.txt, or tokenizer.json; padding and length from their configs.

        FileNotFoundError for a missing file, ValueError for a damaged one.
        """
        folder = Path(folder)
        config, marks, fast, added = (_read(folder / name) if (folder / name).is_file() else {} for name in (
            "tokenizer_config.json", "special_tokens_map.json", "tokenizer.json", "added_tokens.json"))  # fmt: skip
        pad = (config | marks).get("pad_token") or END
        added |= {token["content"]: token["id"] for token in fast.get("added_tokens", [])}
        added |= {token["content"]: int(i) for i, token in config.get("added_tokens_decoder", {}).items()}
        if (folder / "vocab.json").is_file() or not fast:
            vocab, path = _read(folder / "vocab.json"), folder / "merges.txt"
            if not path.is_file():
                raise FileNotFoundError(f"{path} does not exist: {HINT}")
            lines = path.read_text(encoding="utf-8").splitlines()
            merges = [line for line in lines if line and not line.startswith("#version")]
        else:
            path = folder / "tokenizer.json"
            try:
                vocab, merges = fast["model"]["vocab"], fast["model"]["merges"]
            except (KeyError, TypeError) as error:
                raise ValueError(f"{path} holds no byte-pair encoding, a model with vocab and merges: {HINT}") from error
        length = int(config.get("model_max_length") or LENGTH)
        length = length if length < 1e9 else LENGTH  # "no limit" is written as 1e30
        pad = pad["content"] if isinstance(pad, dict) else pad
        return cls(vocab, _pairs(merges, path), pad, length, added, config.get("words"))

    def save(self, folder: str | Path) -> None:
        """Write vocab.json, merges.txt and tokenizer_config.json, which `load` reads, and transformers' CLIPTokenizer too."""
        folder, added = Path(folder), self.special - {START, END, self.names[self.pad]}
        config = {"tokenizer_class": "CLIPTokenizer", "pad_token": self.names[self.pad], "model_max_length": self.length}
        config["added_tokens_decoder"] = {str(self.vocab[token]): {"content": token} for token in sorted(added)}
        config |= {"words": sorted(self.words)} if self.words else {}
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in {"vocab.json": self.vocab, "tokenizer_config.json": config}.items():
            write_file(folder / name, (json.dumps(content, ensure_ascii=False, indent=0) + "\n").encode())
        write_file(folder / "merges.txt", "\n".join(["#version: 0.2", *map(" ".join, self.ranks), ""]).encode())

    def __call__(self, texts: str | list[str], truncate: bool = False) -> Tensor:
        """Texts -> ids (B, length) int64; a single text is a batch of one.

        A text that does not fit raises ValueError, which names the words that are too many; truncate=True cuts them off.
        So does one with words that are not among `words`, if there are such, and the error lists both.
        """
        texts = [texts] if isinstance(texts, str) else texts
        if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"texts = {texts!r}: give a str or a list of str")
        if new := self.unknown(texts):
            more = f" and {len(new) - 5} more" if len(new) > 5 else ""
            raise ValueError(f'this model never learned "{" ".join(new[:5])}"{more}: it knows {" ".join(sorted(self.words))}')
        rows = [self._row(text, truncate) for text in texts]
        return torch.tensor(rows, dtype=torch.int64).reshape(-1, self.length)

    def unknown(self, texts: list[str]) -> list[str]:
        """The words of these texts that are not among `words`, each once; none where there are no such."""
        known, met = self.words | self.special, [word for text in texts for word in self._words(text)] if self.words else []
        return list(dict.fromkeys(word for word in met if word not in known))

    def tokens(self, text: str) -> list[str]:
        """The pieces of a text, to look at: "a flooble" -> ["a</w>", "floo", "ble</w>"]. Half a character shows as "\\xe2"."""
        pieces = [self.names[i] for word in self._words(text) for i in self._encode(word)]
        return [piece if piece in self.special else _bytes(piece).decode(errors="backslashreplace") for piece in pieces]

    def decode(self, ids: Tensor | list[int]) -> str:
        """ids (L,) -> text: lower-cased, spaces between the words, without start, end, padding and added tokens.

        ValueError for an id that is not in the vocabulary.
        """
        ids = [int(i) for i in ids]
        if not self.names.keys() >= set(ids):
            raise ValueError(f"id {min(set(ids) - self.names.keys())} is not in this vocabulary of {len(self.vocab)} tokens")
        pieces = [self.names[i] for i in ids if self.names[i] not in self.special]
        return b"".join(map(_bytes, pieces)).decode(errors="replace").replace("</w>", " ").strip()

    def _row(self, text: str, truncate: bool) -> list[int]:
        words, room = self._words(text), self.length - 2  # start and end take two
        encoded = [self._encode(word) for word in words]
        ids = [i for word in encoded for i in word]
        if len(ids) > room and not truncate:
            out = " ".join(word for word, end in zip(words, accumulate(map(len, encoded)), strict=True) if end > room)
            raise ValueError(f'the prompt has {len(ids)} tokens and {room} fit: "{out[:200]}{"..." * (len(out) > 200)}" is too '
                             "much. Shorten it, or let truncate=True cut it off")
        row = [self.start, *ids[:room], self.end]
        return row + [self.pad] * (self.length - len(row))

    def _words(self, text: str) -> list[str]:
        words = []
        for part in self._special.split(text):  # special tokens are looked for before anything is lower-cased
            if part in self.special:
                words.append(part)
            else:  # character by character: lower() on a whole text would see which sigma ends a word
                lower = "".join(map(str.lower, unicodedata.normalize("NFC", part)))
                words += [word for chunk in CHUNKS.findall(lower) for word in WORDS.findall(chunk)]
        return words

    def _encode(self, word: str) -> list[int]:
        if word not in self.cache:
            self.cache[word] = [self.vocab.get(piece, self.end) for piece in byte_pairs(word, self.ranks)]
        return self.cache[word]


def byte_pairs(word: str, ranks: dict[tuple[str, str], int]) -> list[str]:
    """The pieces of a word: of all pairs of neighbours, the one learned first is joined, again and again, while one is known.

    ranks: which pair was learned when. (Sennrich et al. 2016, section 3.2)
    """
    *first, last = [NAMES[byte] for byte in word.encode()]
    pieces = f" {'  '.join([*first, last + '</w>'])} "  # each between spaces of its own; the last byte knows it is the last
    while pairs := ranks.keys() & set(pairwise(pieces.split())):
        a, b = min(pairs, key=ranks.__getitem__)
        pieces = pieces.replace(f" {a}  {b} ", f" {a}{b} ")
    return pieces.split()


def _bytes(piece: str) -> bytes:
    return bytes(BYTES[name] for name in piece)


def _pairs(merges: list, path: Path) -> list[tuple[str, str]]:
    """Merges as files have them, "a b" or ["a", "b"] -> pairs."""
    pairs = [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in merges]
    for line, pair in enumerate(pairs, 1):
        if len(pair) != 2:
            raise ValueError(f"{path} is damaged: merge {line} is {pair}, not a pair. {HINT}")
    return pairs


def _read(path: Path) -> dict:
    content = read_json(path, HINT)
    if not isinstance(content, dict):
        raise ValueError(f"{path} is damaged: it holds no table of names. {HINT}")
    return content
