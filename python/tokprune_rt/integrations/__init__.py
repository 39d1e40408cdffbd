"""The runtime inside other projects' pipelines.

One module per project, imported only by name, so that none of them is a dependency of this
package: `sentence_transformers`, `cross_encoder`, `sentence_module`, `langchain`, `llama_index`,
`haystack`, `chroma`, `sklearn`, `pipelines`, `ray` and `spark`. Without its project installed, a
module raises ImportError with the command that installs it.

Everywhere a model is named, ``policy`` is ``"off"`` unless given: a folder's own policy is used
only on request (``policy="auto"``), so that no vector differs from the dense model's unnoticed.
"""
