"""F1 and exact match of answers, as the SQuAD data set defines them (arXiv 1806.03822)."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Iterable

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def words_of(answer: str) -> list[str]:
    """What of an answer counts: lower case, without punctuation and articles."""
    return _ARTICLES.sub(" ", answer.lower().translate(_NO_PUNCTUATION)).split()


def exact(found: str, wanted: str) -> float:
    """1 if the same words are there, else 0."""
    return float(words_of(found) == words_of(wanted))


def f1(found: str, wanted: str) -> float:
    """F1 of the words; of an empty answer, whether both are empty."""
    ours, theirs = words_of(found), words_of(wanted)
    if not ours or not theirs:
        return float(ours == theirs)
    common = (Counter(ours) & Counter(theirs)).total()
    return 2 * common / (len(ours) + len(theirs))


METRICS: dict[str, Callable[[str, str], float]] = {"f1": f1, "exact": exact}


def best(metric: str, found: str, answers: Iterable[str]) -> float:
    """The score against the nearest of the answers; without any, the empty one is right.

    As in the official script, an answer of which nothing counts is none.
    """
    wanted = [answer for answer in answers if words_of(answer)] or [""]
    return max(METRICS[metric](found, answer) for answer in wanted)
