"""The served models by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from tokprune_rt.serve.errors import ServeError, invalid
from tokprune_rt.serve.served import Served

if TYPE_CHECKING:
    from tokprune_rt.model import Model


def embeds(model: Model) -> bool:
    """Whether the model has sentence embeddings."""
    return model.dimension is not None


def classifies(model: Model) -> bool:
    """Whether the model labels texts or pairs."""
    return model.task == "sequence-classification"


def reranks(model: Model) -> bool:
    """Whether the model scores pairs."""
    return classifies(model) and len(model.labels) == 1


def tags(model: Model) -> bool:
    """Whether the model labels tokens."""
    return model.task == "token-classification"


def answers(model: Model) -> bool:
    """Whether the model answers questions."""
    return model.task == "question-answering"


def anything(model: Model) -> bool:
    """Every model has a tokenizer."""
    return True


_NEEDS: dict[Callable[[Model], bool], str] = {
    embeds: "a model with sentence embeddings",
    classifies: "a sequence-classification model",
    reranks: "a sequence-classification model with one label",
    tags: "a token-classification model",
    answers: "a question-answering model",
    anything: "a model",
}


class Registry:
    """The served models, in the order in which they were given."""

    def __init__(self, served: Mapping[str, Served]) -> None:
        if not served:
            raise ValueError("there is no model to serve")
        self._served = dict(served)

    def __iter__(self) -> Iterator[Served]:
        return iter(self._served.values())

    def pick(self, name: str | None, can: Callable[[Model], bool] = anything) -> Served:
        """The model of this name, or without one the first that can do it.

        Raises ServeError: 404 for an unknown name, 422 for a model that cannot do it.
        """
        if name is None:
            for served in self._served.values():
                if can(served.model):
                    return served
            raise invalid(f"this route needs {_NEEDS[can]}, and none is served", "model")
        if name not in self._served:
            raise ServeError(
                404,
                "NotFound",
                f"unknown model {name!r}; served are: {', '.join(self._served)}",
                param="model",
            )
        served = self._served[name]
        if not can(served.model):
            raise invalid(
                f"this route needs {_NEEDS[can]}; {name} is a {served.model.task} model", "model"
            )
        return served
