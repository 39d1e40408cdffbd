"""Bodies of requests."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def _lower(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


# text-embeddings-inference writes "Left", its clients "left".
Direction = Annotated[Literal["left", "right"], BeforeValidator(_lower)]
Name = Annotated[str | None, Field(description="Which of the served models; default: the first.")]
ProfileName = Annotated[
    str | None,
    Field(description="A profile of the model's policy; off runs dense. Default: the server's."),
]


class Body(BaseModel):
    """What every request may say."""

    model_config = ConfigDict(strict=True)

    model: Name = None
    profile: ProfileName = None


class Truncating(Body):
    """A request with texts that may be too long."""

    truncate: bool | None = Field(None, description="false refuses over-long texts; default true.")
    truncation_direction: Direction | None = None


class EmbedAll(Truncating):
    inputs: str | list[str]
    prompt_name: str | None = None


class Embed(EmbedAll):
    normalize: bool = True
    dimensions: int | None = Field(None, description="Keep the first dimensions.")


class Predict(Truncating):
    inputs: str | list[str] | list[list[str]] = Field(
        description="A text, a pair of texts, or a list of lists of one or two texts."
    )
    raw_scores: bool = False


class LabelParameters(BaseModel):
    """What a Hugging Face pipeline of labels takes and ``/predict`` does not."""

    model_config = ConfigDict(strict=True)

    top_k: int | None = Field(None, ge=1)


class Document(BaseModel):
    text: str


class Rerank(Truncating):
    """text-embeddings-inference's body with ``texts``, or Cohere's with ``documents``."""

    query: str
    texts: list[str] | None = None
    raw_scores: bool = False
    rescore: int | None = Field(
        None, ge=1, description="Score so many of the best again without pruning; they come first."
    )
    return_text: bool = False
    documents: list[str | Document] | None = None
    top_n: int | None = Field(None, ge=1)
    return_documents: bool = False


class SimilarityInputs(BaseModel):
    source_sentence: str
    sentences: list[str]


class SimilarityParameters(BaseModel):
    truncate: bool | None = None
    truncation_direction: Direction | None = None
    prompt_name: str | None = None


class Similarity(Body):
    inputs: SimilarityInputs
    parameters: SimilarityParameters | None = None


class Tokenize(Body):
    inputs: str | list[str]
    add_special_tokens: bool = True
    prompt_name: str | None = None


class Decode(Body):
    ids: list[int] | list[list[int]]
    skip_special_tokens: bool = True


class Tag(Truncating):
    inputs: str | list[str]
    aggregation_strategy: str = "simple"
    ignore_labels: list[str] = ["O"]


class Answer(Body):
    question: str
    context: str
    top_k: int = Field(1, ge=1, le=100)
    max_answer_len: int = Field(15, ge=1, le=256, description="In tokens.")
    max_seq_len: int | None = Field(None, ge=1, description="Tokens per window; default 384.")
    doc_stride: int | None = Field(
        None, ge=0, description="Tokens that windows share, fewer than a window has; default 128."
    )
    handle_impossible_answer: bool = False


class Root(BaseModel):
    """Dispatched on the model's task; the fields are those of the task's own route."""

    model_config = ConfigDict(extra="allow")

    model: Name = None
    inputs: Any = None
    parameters: dict[str, Any] | None = Field(
        None, description="Parameters of a Hugging Face pipeline, and its form of the answer."
    )


class Embeddings(Body):
    """OpenAI's ``/v1/embeddings``."""

    input: str | list[str] | list[int] | list[list[int]]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    user: str | None = None


class Play(Body):
    """The playground: a text, or a query (question) with documents (its context)."""

    text: str
    documents: list[str] = Field(default_factory=list, max_length=32)
