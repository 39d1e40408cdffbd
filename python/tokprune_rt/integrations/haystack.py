"""Embedders for Haystack; they live in Haystack's own namespace for integrations."""

from haystack_integrations.components.embedders.tokprune import (
    TokpruneDocumentEmbedder,
    TokpruneTextEmbedder,
)

__all__ = ["TokpruneDocumentEmbedder", "TokpruneTextEmbedder"]
