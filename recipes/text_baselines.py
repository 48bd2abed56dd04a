"""What a classifier of texts must beat: the commonest class, and a linear model of which words there are."""

from __future__ import annotations

from collections import Counter

from function_text import Split
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

__all__ = ["bag_of_words", "majority"]


def majority(split: Split) -> float:
    """Accuracy of always saying the class that has the most texts to train on."""
    commonest = Counter(one.label for one in split.train).most_common(1)[0][0]
    return sum(one.label == commonest for one in split.held_out) / len(split.held_out)


def bag_of_words(split: Split) -> float:
    """Accuracy of logistic regression on the tf-idf of words, of whole texts, not of their beginnings."""
    words = TfidfVectorizer(sublinear_tf=True, token_pattern="[A-Za-z]+")
    known = words.fit_transform([one.text for one in split.train])
    judge = LogisticRegression(C=10.0, max_iter=1000).fit(known, [one.label for one in split.train])
    asked = words.transform([one.text for one in split.held_out])
    return float(judge.score(asked, [one.label for one in split.held_out]))
