"""scikit-learn: texts through a Pipeline and a GridSearchCV, cloned and pickled."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tokprune_rt
from tokprune_rt.policy import preset

pytest.importorskip("sklearn")

ANIMALS = [
    "The cat sleeps on the warm mat.",
    "A kitten naps in the sun.",
    "Dogs chase the ball.",
    "The horse grazes near the barn.",
    "Birds sing before dawn.",
    "A fox crossed the field.",
]
MONEY = [
    "Interest rates rose again this quarter.",
    "The bank raised its fees.",
    "Shares fell after the report.",
    "Inflation slowed in spring.",
    "The fund bought more bonds.",
    "Taxes on income went down.",
]
TEXTS, LABELS = [*ANIMALS, *MONEY], [0] * 6 + [1] * 6


@pytest.fixture(scope="module")
def kind() -> Any:
    from tokprune_rt.integrations.sklearn import TokpruneEncoder

    return TokpruneEncoder


def test_pipeline_and_grid_search(kind: Any, minilm_folder: Path) -> None:
    from sklearn.base import clone
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline
    from sklearn.utils.validation import check_is_fitted

    policy = preset("quantile", layers=6, q=0.4)
    steps = make_pipeline(kind(str(minilm_folder)), LogisticRegression())
    grid = {
        "tokpruneencoder__truncate_dim": [2, None],
        "tokpruneencoder__policy": ["off", policy],
        "logisticregression__C": [1.0],
    }
    search = GridSearchCV(steps, grid, cv=3, n_jobs=2).fit(TEXTS, LABELS)
    assert search.best_score_ >= 0.8
    assert len(search.cv_results_["params"]) == 4
    assert list(search.predict(["a sleeping dog", "the price of gold"])) == [0, 1]
    best = search.best_estimator_
    check_is_fitted(best)
    again = pickle.loads(pickle.dumps(best))
    np.testing.assert_array_equal(again.predict_proba(TEXTS), best.predict_proba(TEXTS))
    fresh = clone(best).fit(TEXTS, LABELS)
    np.testing.assert_allclose(fresh.predict_proba(TEXTS), best.predict_proba(TEXTS), atol=1e-6)


def test_transform(kind: Any, minilm_folder: Path, minilm: Any) -> None:
    encoder = kind(str(minilm_folder))
    expected = minilm.encode(TEXTS)
    found = encoder.fit_transform(TEXTS)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(encoder.transform(np.array(TEXTS)), expected)
    np.testing.assert_array_equal(encoder.transform(np.array(TEXTS)[:, None]), expected)
    assert encoder.transform([]).shape == (0, 384)
    # Changed parameters load another model; only these are pickled.
    policy = preset("quantile", layers=6, q=0.4)
    encoder.set_params(policy=policy, truncate_dim=8)
    direct = tokprune_rt.load(minilm_folder, policy=policy)
    assert encoder.policy_hash == direct.policy_hash
    np.testing.assert_array_equal(encoder.transform(TEXTS), direct.encode(TEXTS)[:, :8])
    assert list(encoder.get_feature_names_out()) == [f"tokpruneencoder{i}" for i in range(8)]
    stored = pickle.dumps(encoder)
    assert len(stored) < 10_000
    np.testing.assert_array_equal(pickle.loads(stored).transform(TEXTS), encoder.transform(TEXTS))


def test_refusals(kind: Any, minilm_folder: Path) -> None:
    encoder = kind(str(minilm_folder))
    for value, message in (
        ("a text", "must be a collection of texts, got a str"),
        ([["a", "b"]], r"one column of texts, got the shape \(1, 2\)"),
        (["a", 3], r"inputs\[1\] must be a str, got int"),
    ):
        with pytest.raises(ValueError, match=message):
            encoder.transform(value)
    # Nothing is loaded, so nothing is wrong, before texts come.
    with pytest.raises(FileNotFoundError):
        kind("no-such-model").fit(TEXTS).transform(TEXTS)
