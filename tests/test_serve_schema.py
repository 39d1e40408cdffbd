"""Requests that Schemathesis makes of the OpenAPI description, answered as it says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from conftest import BuildModel
from hypothesis import HealthCheck, given, settings
from serving import Running, running

import tokprune_rt as tp

schemathesis = pytest.importorskip("schemathesis")

# A description cannot tell all that is wrong with a body (a text that is too long, a field of
# another model's task), and unknown fields are ignored, as in text-embeddings-inference.
UNDECIDED = ["positive_data_acceptance", "negative_data_rejection"]


@pytest.fixture(scope="module")
def run(tiny: BuildModel) -> Iterator[Running]:
    one = {"id2label": {0: "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    models = {
        "embedder": tp.load(tiny("bert"), threads=1),
        "ranker": tp.load(tiny("bert", "sequence-classification", **one), threads=1),
        "tagger": tp.load(tiny("bert", "token-classification"), threads=1),
        "reader": tp.load(tiny("bert", "question-answering"), threads=1),
    }
    with running(models) as found:
        yield found


@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode), ids=lambda mode: mode.value)
def test_answers_are_those_described(run: Running, mode: Any) -> None:
    described = schemathesis.openapi.from_url(f"{run.url}/openapi.json")
    undecided = schemathesis.checks.CHECKS.get_by_names(UNDECIDED)
    for found in described.get_all_operations():
        operation = found.ok()
        if mode is schemathesis.GenerationMode.NEGATIVE and not operation.body:
            continue  # nothing that could be wrong
        requests = operation.as_strategy(generation_mode=mode)

        @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
        @given(case=requests)
        def answered(case: Any) -> None:
            case.call_and_validate(excluded_checks=undecided)

        answered()
