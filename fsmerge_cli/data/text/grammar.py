"""Sentences generated from small grammars: their topic, or whether they are kind, with negation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fsmerge_cli.common.seeding import derive

TOPICS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "sports": {
        "noun": ("match", "race", "ball", "goal", "coach", "team", "medal", "stadium"),
        "verb": ("won", "played", "kicked", "trained for", "lost"),
    },
    "food": {
        "noun": ("soup", "bread", "cheese", "kitchen", "dinner", "cake", "salad", "spoon"),
        "verb": ("cooked", "baked", "tasted", "ordered", "stirred"),
    },
    "travel": {
        "noun": ("train", "ticket", "island", "hotel", "airport", "map", "suitcase", "harbour"),
        "verb": ("booked", "packed", "reached", "left", "visited"),
    },
    "music": {
        "noun": ("song", "violin", "concert", "drum", "choir", "piano", "melody", "album"),
        "verb": ("sang", "tuned", "recorded", "conducted", "hummed"),
    },
}
"""By label: nouns and verbs."""

PEOPLE = ("anna", "the teacher", "our neighbour", "a friend", "my brother", "the doctor", "paul", "they", "we")
TIMES = ("yesterday", "on monday", "in the evening", "last week", "at noon", "after work", "today")
PLACES = ("near the river", "in town", "at home", "behind the house", "with the children", "in the rain")

GOOD = ("good", "great", "lovely", "friendly", "excellent", "charming", "useful", "clever")
BAD = ("bad", "awful", "boring", "rude", "terrible", "ugly", "useless", "dull")
LIKED = ("liked", "enjoyed", "loved", "praised")
DISLIKED = ("disliked", "hated", "regretted", "cursed")
DEGREES = ("", "really", "rather", "very", "quite")
POLARITY = ("negative", "positive")

ENDS = (".", "!", "")
FUNCTION_WORDS = (
    "the",
    "a",
    "was",
    "were",
    "is",
    "did",
    "not",
    "never",
    "and",
    "but",
    "it",
    "i",
    "while",
    "about",
)

KINDS: Mapping[str, tuple[str, ...]] = {"topic": tuple(TOPICS), "polarity": POLARITY}
"""The label sets: which task a set of labels belongs to."""


def sentence(kind: str, label: str, number: int, split: str) -> str:
    """The sentence of this number with this label; the same on every machine."""
    random = np.random.default_rng(derive(0, "sentences", kind, label, split, number))
    return _topic(label, random) if kind == "topic" else _polarity(label, random)


def _pick(options: Sequence[str], random: np.random.Generator) -> str:
    return options[int(random.integers(len(options)))]


def _topic(label: str, random: np.random.Generator) -> str:
    """Verb and nouns of the topic; one noun of another topic may stand beside them."""
    own = TOPICS[label]
    parts = [_pick(PEOPLE, random), _pick(own["verb"], random), "the", _pick(own["noun"], random)]
    if random.random() < 0.5:
        other = _pick([name for name in TOPICS if name != label], random)
        parts += ["and forgot about the", _pick(TOPICS[other]["noun"], random)]
    parts.insert(0 if random.random() < 0.5 else len(parts), _pick(TIMES, random))
    if random.random() < 0.5:
        parts.append(_pick(PLACES, random))
    return _joined(parts, random)


def _polarity(label: str, random: np.random.Generator) -> str:
    """What was thought of a thing; a negation turns it round, and after `but` only the end counts."""
    positive = label == "positive"
    parts = _clause(positive, random)
    if random.random() < 0.4:
        parts = [*_clause(not positive, random), "but", *parts]
    return _joined(parts, random)


def _clause(positive: bool, random: np.random.Generator) -> list[str]:
    negated = random.random() < 0.4
    kind = positive != negated
    noun = _pick(TOPICS[_pick(list(TOPICS), random)]["noun"], random)
    if random.random() < 0.5:
        no = [_pick(("not", "never"), random)] if negated else []
        return ["the", noun, "was", *no, _pick(DEGREES, random), _pick(GOOD if kind else BAD, random)]
    no = [_pick(("never really", "never"), random)] if negated else []
    return [_pick(PEOPLE, random), *no, _pick(LIKED if kind else DISLIKED, random), "the", noun]


def _joined(parts: Sequence[str], random: np.random.Generator) -> str:
    return " ".join(part for part in parts if part) + _pick(ENDS, random)


def words() -> list[str]:
    """All words of the grammars, sorted."""
    lists: list[Sequence[str]] = [PEOPLE, TIMES, PLACES, GOOD, BAD, LIKED, DISLIKED, DEGREES, FUNCTION_WORDS]
    lists += [own[part] for own in TOPICS.values() for part in own]
    lists += [("forgot", "i", "while")]
    return sorted({word for own in lists for text in own for word in text.split()})
