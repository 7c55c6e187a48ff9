"""The first thing a user does."""

import time

from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from flatmin import NoisyDiffusionClassifier


def test_digits_with_the_defaults():
    X, y = load_digits(return_X_y=True)
    X, X_test, y, y_test = train_test_split(X, y, random_state=0)
    start = time.process_time()
    clf = NoisyDiffusionClassifier(random_state=0).fit(X, y)
    # Of the processor, since other tests may run at the same time.
    assert time.process_time() - start < 10
    assert clf.score(X_test, y_test) > 0.95
