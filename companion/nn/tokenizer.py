"""A byte-level byte-pair tokenizer: from a text to whole numbers and back, without an unknown token.

After Gage (1994, "A new algorithm for data compression"), who replaced the most frequent pair of bytes by a new symbol,
again and again; Sennrich et al. (2016, "Neural machine translation of rare words with subword units"), who did so
within words; and Radford et al. (2019, GPT-2), who went back to bytes and cut the text by kinds of characters first.

1. `split`: GPT-2's cut of a text into pieces; no token crosses from one into the next.
2. `train`: which pairs are merged, in which order.
3. `BytePairTokenizer`: encodes, decodes, and knows the words of its training texts.

For the same texts the merges, and the numbers of the tokens, are those of Hugging Face's `tokenizers` with its
`ByteLevel` pre-tokenizer (no prefix space) and `BpeTrainer` (`initial_alphabet=ByteLevel.alphabet()`). Where pairs are
equally frequent, that of the lower token numbers goes first. Where two ways lead to the same string of bytes, both
lead to one token, and a pair may be merged twice, in different words; this too is as there.

Deviation: which characters are letters or numbers is what this Python's version of Unicode says.
"""

import heapq
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import cast

from companion import checks
from companion.errors import unknown_name

Pair = tuple[int, int]

# The first 256 tokens are the bytes, in GPT-2's order: first those that are printable characters of Latin-1.
PRINTABLE = (*range(33, 127), *range(161, 173), *range(174, 256))
BYTES = (*PRINTABLE, *(byte for byte in range(256) if byte not in PRINTABLE))
# byte → token
TOKEN_OF_BYTE = tuple(BYTES.index(byte) for byte in range(256))
# Encodings of pieces that are kept; texts repeat their words.
REMEMBERED = 2**16

# --- 1. Pieces --------------------------------------------------------------------------------------------------------

# GPT-2: 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
# `re` knows neither \p{L} nor \p{N}, so it looks at a text in which an ASCII character of its kind stands for every
# other character.
PIECE = re.compile(
    r"'(?:[stmd]|re|ve|ll)| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+", re.ASCII
)
# Unicode's White_Space beyond ASCII.
SPACES = frozenset("\x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000") | {
    chr(code) for code in range(0x2000, 0x200B)
}


class _Kinds(dict[int, str]):
    """For `str.translate`: the ASCII character that stands for one of the same kind."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        if code < 128:
            kind = character
        elif character in SPACES:
            kind = "\t"
        else:
            kind = {"L": "a", "N": "0"}.get(unicodedata.category(character)[0], "!")
        self[code] = kind
        return kind


_KINDS = _Kinds()


def split(text: str) -> list[str]:
    """Cuts a text into pieces: words, numbers, other signs, each with the space before it, and white space."""
    return [text[m.start() : m.end()] for m in PIECE.finditer(text.translate(_KINDS))]


def words(text: str) -> list[str]:
    """Returns the words of a text in lower case: runs of letters."""
    return [piece.strip().lower() for piece in split(text) if piece.strip().isalpha()]


def _bytes(piece: str) -> bytes:
    # Half of a surrogate pair is no character, but a string may hold it.
    return piece.encode("utf-8", "surrogatepass")


# --- 2. Training ------------------------------------------------------------------------------------------------------


def _merge(word: list[int], pair: Pair, new: int) -> list[tuple[Pair, int]]:
    """Merges a pair wherever it occurs in a word, in place; returns which pairs that takes away (−1) or adds (+1)."""
    changes: list[tuple[Pair, int]] = []
    i = 0
    while i + 1 < len(word):
        if (word[i], word[i + 1]) == pair:
            if i:
                changes += [((word[i - 1], pair[0]), -1), ((word[i - 1], new), 1)]
            word[i : i + 2] = [new]
            if i + 1 < len(word):
                changes += [((pair[1], word[i + 1]), -1), ((new, word[i + 1]), 1)]
        i += 1
    return changes


def learn_merges(pieces: Counter[str], vocabulary: int) -> Iterator[Pair]:
    """Yields which pairs of tokens to merge, the most frequent first.

    Args:
        pieces: how often each piece of text occurs.
        vocabulary: how many tokens there are to be, the 256 bytes among them; fewer if no pair is left.
    """
    corpus = [[TOKEN_OF_BYTE[byte] for byte in _bytes(piece)] for piece in pieces]
    frequency = list(pieces.values())
    strings = [bytes([byte]) for byte in BYTES]
    token_of = {string: token for token, string in enumerate(strings)}
    counts: Counter[Pair] = Counter()
    places: dict[Pair, set[int]] = {}
    for index, word in enumerate(corpus):
        for pair in pairwise(word):
            counts[pair] += frequency[index]
            places.setdefault(pair, set()).add(index)
    # The most frequent on top, then the lowest numbers; the last entry is never compared, since no two are alike.
    queue: list[tuple[int, Pair, int, set[int]]] = []
    for pair, where in places.items():
        queue.append((-counts[pair], pair, len(queue), where))
    heapq.heapify(queue)
    made = len(queue)
    while queue and len(strings) < vocabulary:
        negative, pair, number, where = heapq.heappop(queue)
        if -negative != counts[pair]:  # other merges took some away since it was put in
            heapq.heappush(queue, (-counts[pair], pair, number, where))
            continue
        if counts[pair] < 1:
            return
        string = strings[pair[0]] + strings[pair[1]]
        new = token_of.setdefault(string, len(strings))
        if new == len(strings):
            strings.append(string)
        yield pair
        grown: dict[Pair, set[int]] = {}
        for index in where:
            for changed, sign in _merge(corpus[index], pair, new):
                counts[changed] += sign * frequency[index]
                if sign > 0:
                    grown.setdefault(changed, set()).add(index)
        for changed, indices in grown.items():
            if counts[changed] > 0:
                heapq.heappush(queue, (-counts[changed], changed, made, indices))
                made += 1


# --- 3. The tokenizer -------------------------------------------------------------------------------------------------


class BytePairTokenizer:
    """Turns texts into tokens and back; it never changes.

    Args:
        merges: the pairs of tokens that are merged, one after another, in one flat sequence: two numbers a merge.
        known_words: the words of the training texts, in lower case.

    Raises:
        ValueError: if the numbers do not pair up, or a merge takes a token that there is not yet.
    """

    def __init__(self, merges: Sequence[int] = (), known_words: Iterable[str] = ()) -> None:
        if len(merges) % 2:
            raise ValueError(
                f"merges are pairs of tokens, got {len(merges)} numbers, which is odd."
            )
        pairs = list(zip(merges[::2], merges[1::2], strict=True))
        strings = [bytes([byte]) for byte in BYTES]
        token_of = {string: token for token, string in enumerate(strings)}
        # Where a pair comes twice the later place counts, as in Hugging Face's.
        self._rank: dict[Pair, int] = {}
        self._made: dict[Pair, int] = {}
        for rank, (a, b) in enumerate(pairs):
            if not 0 <= min(a, b) <= max(a, b) < len(strings):
                raise ValueError(
                    f"merges[{2 * rank}:{2 * rank + 2}] are the tokens {a} and {b}, but so far there are only "
                    f"{len(strings)} tokens: give the merges in the order in which they were learnt."
                )
            string = strings[a] + strings[b]
            if string not in token_of:
                token_of[string] = len(strings)
                strings.append(string)
            self._rank[a, b], self._made[a, b] = rank, token_of[string]
        self._flat, self._strings = tuple(merges), tuple(strings)
        self._words = frozenset(known_words)
        self._encode = lru_cache(REMEMBERED)(self._encode_piece)

    @classmethod
    def train(cls, texts: Iterable[str], vocabulary: int) -> "BytePairTokenizer":
        """Learns merges from texts.

        Args:
            texts: any number of them; nothing is merged across their ends.
            vocabulary: how many tokens there are to be, at least the 256 bytes; fewer if the texts hold no more pairs.

        Raises:
            ValueError: for a vocabulary below 256, or if a single text is given in place of several.
        """
        checks.whole(len(BYTES), vocabulary=vocabulary)
        if isinstance(texts, str):
            raise ValueError("texts is one string; give a list of texts, such as [text].")
        pieces: Counter[str] = Counter()
        for text in texts:
            pieces.update(split(text))
        flat = [token for pair in learn_merges(pieces, vocabulary) for token in pair]
        return cls(flat, {word for piece in pieces for word in words(piece)})

    @property
    def vocabulary(self) -> int:
        """The number of tokens."""
        return len(self._strings)

    @property
    def flat(self) -> tuple[int, ...]:
        """The merges as the constructor takes them: whole numbers, for a config or a card."""
        return self._flat

    @property
    def merges(self) -> tuple[tuple[bytes, bytes], ...]:
        """The pairs that are merged, in order of their rank, as the bytes that they stand for."""
        ordered = sorted(self._rank, key=self._rank.__getitem__)
        return tuple((self._strings[a], self._strings[b]) for a, b in ordered)

    @property
    def known_words(self) -> frozenset[str]:
        """The words of the training texts, in lower case."""
        return self._words

    def string_of(self, token: int) -> bytes:
        """Returns the bytes that a token stands for, which need not be whole characters.

        Raises:
            ValueError: if there is no such token.
        """
        if not 0 <= token < self.vocabulary:
            raise ValueError(f"token {token} is none of 0…{self.vocabulary - 1}.")
        return self._strings[token]

    def encode(self, text: str) -> list[int]:
        """Returns the tokens of a text."""
        return [token for piece in split(text) for token in self._encode(piece)]

    def _encode_piece(self, piece: str) -> tuple[int, ...]:
        word = [TOKEN_OF_BYTE[byte] for byte in _bytes(piece)]
        never = len(self._rank) + len(self._flat)
        while len(word) > 1:
            ranks = [self._rank.get(pair, never) for pair in pairwise(word)]
            i = ranks.index(min(ranks))  # the leftmost, if there are several
            if ranks[i] == never:
                break
            word[i : i + 2] = [self._made[word[i], word[i + 1]]]
        return tuple(word)

    def decode(self, tokens: Iterable[int]) -> str:
        """Returns the text of tokens; bytes that are no characters become U+FFFD.

        Raises:
            ValueError: if there is no such token.
        """
        data = b"".join(self.string_of(token) for token in tokens)
        try:
            return data.decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            return data.decode("utf-8", "replace")

    # --- Words --------------------------------------------------------------------------------------------------------

    def unknown_words(self, text: str) -> list[str]:
        """Returns the words of a text that no training text held, each once, in their order; the case is ignored."""
        return [word for word in dict.fromkeys(words(text)) if word not in self._words]

    def require_known(self, text: str) -> None:
        """Requires that every word of a text occurred in the training texts.

        Raises:
            ValueError: for the first that did not; the message suggests the nearest that did.
        """
        unknown = self.unknown_words(text)
        if unknown:
            raise unknown_name("word", unknown[0], self._words)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, BytePairTokenizer):
            return NotImplemented
        return (self._flat, self._words) == (other._flat, other._words)

    def __hash__(self) -> int:
        return hash((self._flat, self._words))

    def __repr__(self) -> str:
        return f"{cast(type, type(self)).__name__}({self.vocabulary} tokens, {len(self._words)} known words)"
