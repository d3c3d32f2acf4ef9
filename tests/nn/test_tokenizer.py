"""The tokenizer against Hugging Face's, trained on the same texts, and its own laws."""

import itertools
import json
import unicodedata
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

tokenizers = pytest.importorskip("tokenizers")

from companion.dalle import BytePairTokenizer  # noqa: E402
from companion.data.text import standard_library_text  # noqa: E402
from companion.nn.tokenizer import BYTES, split, words  # noqa: E402

COLOURS = ("red", "green", "blue", "yellow", "magenta", "cyan")
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
RELATIONS = ("left of", "right of", "above", "below")
CAPTIONS = [
    f"a {a} {b} {relation} a {c} {d}"
    for a, b, relation, c, d in itertools.product(
        COLOURS, DIGITS[::3], RELATIONS, COLOURS, DIGITS[::4]
    )
]
UNICODE = [
    "Dès Noël, où un zéphyr haï me vêt de glaçons würmiens, je dîne d’exquis rôtis 😀😀👩‍👩‍👧",
    "敏捷的棕色狐狸跳过懒狗 ١٢٣ ½ ⅷ x² 一二三\u3000full\u2003width\x85next\xa0nbsp\x1c\x1f",
    "It's we'll they've I'm he'd you're 'tis 'S ’s don't\t\ttabs  \n\n  lines   ",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 \u0301combining e\u0301 ᾳ ǅ ªº ñ²³ ௧௨ Ⅻ",
]
# So that two ways lead to one token: "abc" from "ab" and "c", and from "a" and "bc".
TWO_WAYS = (
    ["ab"] * 60
    + ["bc"] * 50
    + ["abc abcx abcxy", "xabc zbcx abcx"] * 9
    + ["bcab abcabc cabcab"] * 5
)
LIBRARY = [d.text for d in standard_library_text()[:40]]
CORPORA = {
    "captions": (CAPTIONS, 320),
    "library": (LIBRARY, 1200),
    "unicode": (UNICODE, 600),
    "two ways": (TWO_WAYS, 300),
    "runs": (["aaaaaaa aaaa aa a", "abababab bababa", "aabbaabb"], 300),
}


def theirs(texts, vocabulary):
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocabulary,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


# GPT-2's picture of the bytes: printable characters stand for themselves, the others for 256, 257 …
PICTURE = {
    chr(byte if token < 188 else 256 + token - 188): byte for token, byte in enumerate(BYTES)
}


def merges_of(tokenizer):
    listed = json.loads(tokenizer.to_str())["model"]["merges"]
    return tuple(tuple(bytes(PICTURE[c] for c in part) for part in pair) for pair in listed)


@pytest.fixture(scope="module")
def pairs():
    return {
        name: (BytePairTokenizer.train(texts, size), theirs(texts, size))
        for name, (texts, size) in CORPORA.items()
    }


def assigned(text):
    """Leaves out what this Python's Unicode does not know yet."""
    return "".join(c for c in text if unicodedata.category(c) not in ("Cn", "Cs"))


@pytest.mark.parametrize("name", CORPORA)
def test_the_merges_and_tokens_are_those_of_hugging_face(name, pairs):
    ours, other = pairs[name]
    assert ours.merges == merges_of(other)
    assert ours.vocabulary == other.get_vocab_size()
    for token in range(ours.vocabulary):
        assert ours.string_of(token) == bytes(PICTURE[c] for c in other.id_to_token(token))
    for text in (*CAPTIONS[::17], *UNICODE, *TWO_WAYS[-20:], *LIBRARY[:5]):
        assert ours.encode(text) == other.encode(text).ids


@pytest.mark.parametrize("name", CORPORA)
@given(text=st.text())
@settings(max_examples=150)
def test_any_text_is_cut_as_by_hugging_face(name, pairs, text):
    ours, other = pairs[name]
    text = assigned(text)
    assert ours.encode(text) == other.encode(text).ids


@given(texts=st.lists(st.text("ab c\n'é", max_size=30), max_size=8), extra=st.integers(0, 40))
@settings(max_examples=150)
def test_any_texts_are_learnt_as_by_hugging_face(texts, extra):
    ours, other = BytePairTokenizer.train(texts, 256 + extra), theirs(texts, 256 + extra)
    assert ours.merges == merges_of(other)
    for text in texts:
        assert ours.encode(text) == other.encode(text).ids


@pytest.mark.parametrize("name", CORPORA)
@given(text=st.text(st.characters(categories=None)))
@settings(max_examples=150)
def test_every_string_comes_back(name, pairs, text):
    ours = pairs[name][0]
    assert ours.decode(ours.encode(text)) == text


@given(text=st.text(st.sampled_from("ab1 \n\t'!éⅷ²\u3000\x85\x1c😀stre")))
def test_pieces_are_the_text(text):
    assert "".join(split(text)) == text


def test_half_of_a_surrogate_pair_comes_back():
    tokenizer = BytePairTokenizer()
    for text in ("\ud83d", "a\ude00b", "\ud83d\ude00"):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_bytes_that_are_no_characters():
    tokenizer = BytePairTokenizer()
    tokens = tokenizer.encode("é")
    assert tokenizer.decode(tokens[:1]) == "\ufffd"
    with pytest.raises(ValueError, match=r"token 256 is none of 0…255"):
        tokenizer.decode([256])


def test_the_flat_merges_make_the_same_tokenizer(pairs):
    for ours, _ in pairs.values():
        again = BytePairTokenizer(ours.flat, ours.known_words)
        assert again == ours
        assert hash(again) == hash(ours)
        assert again.merges == ours.merges
        assert [again.encode(t) for t in UNICODE] == [ours.encode(t) for t in UNICODE]


@pytest.mark.parametrize(("merges", "message"), [((1,), "odd"), ((0, 256), "only 256 tokens")])
def test_merges_that_cannot_be(merges, message):
    with pytest.raises(ValueError, match=message):
        BytePairTokenizer(merges)


@pytest.mark.parametrize("vocabulary", [255, 0, -1])
def test_a_vocabulary_holds_all_bytes(vocabulary):
    with pytest.raises(ValueError, match="vocabulary must be a whole number of at least 256"):
        BytePairTokenizer.train(["a"], vocabulary)


def test_one_text_is_not_several():
    with pytest.raises(ValueError, match="give a list of texts"):
        BytePairTokenizer.train("a red three", 300)


def test_the_first_merge_is_the_most_frequent_pair():
    """By hand: in "low low lower" lo and ow occur three times each; l is the lower number."""
    first = BytePairTokenizer.train(["low low lower"], 257).merges
    counts = Counter(
        pair for piece in split("low low lower") for pair in itertools.pairwise(piece.encode())
    )
    best = max(counts.values())
    assert counts[first[0][0][0], first[0][1][0]] == best
    assert first == ((b"l", b"o"),)


# --- Words -----------------------------------------------------------------------------------------------------------


def test_words_that_no_text_held(pairs):
    captions = pairs["captions"][0]
    assert captions.unknown_words("A RED three left of a blue, purple seven; a purple dog") == [
        "purple",
        "seven",
        "dog",
    ]
    assert captions.unknown_words(CAPTIONS[5]) == []
    captions.require_known(CAPTIONS[0])
    with pytest.raises(ValueError, match=r"unknown word 'gren'\. Did you mean 'green'\?"):
        captions.require_known("a gren three")


def test_what_a_word_is():
    assert words("It's 3 Éclairs, naïve-ish.") == ["it", "éclairs", "naïve", "ish"]
