"""A folder's tokenizer files -> a backend of the ``tokenizers`` library."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokprune_rt.errors import ModelFormatError
from tokprune_rt.loader.config import read_json

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer

_SPECIAL_NAMES = ("cls_token", "sep_token", "unk_token", "pad_token", "mask_token")
_SENTENCEPIECE = ("sentencepiece.bpe.model", "spiece.model", "sentencepiece.model", "spm.model")
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    *_SENTENCEPIECE,
)
"""Everything that a folder may hold for its tokenizer."""

_BERT_TOKENS = {
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "unk_token": "[UNK]",
    "pad_token": "[PAD]",
    "mask_token": "[MASK]",
}
_ROBERTA_TOKENS = {
    "cls_token": "<s>",
    "sep_token": "</s>",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
    "mask_token": "<mask>",
}


def read_tokenizer_config(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json over special_tokens_map.json; both are optional."""
    options: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        path = folder / name
        if path.is_file():
            options.update(read_json(path))
    return options


def build_tokenizer(folder: Path, model_type: str, options: dict[str, Any]) -> Tokenizer:
    """The folder's tokenizer: tokenizer.json, else built from its vocabulary files.

    Raises ModelFormatError when there is none, when it is damaged, or when only a sentencepiece
    model is there, then with the command that writes tokenizer.json.
    """
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    if path.is_file():
        try:
            backend = Tokenizer.from_file(str(path))
        except Exception as err:  # the library raises bare Exception
            raise ModelFormatError(f"{path}: not a valid tokenizer file ({err})") from err
        _apply_bert_options(backend, options)
        return backend
    if (folder / "vocab.txt").is_file():
        return _wordpiece(folder, model_type, options)
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        return _byte_level_bpe(folder, options)
    for name in _SENTENCEPIECE:
        if (folder / name).is_file():
            raise ModelFormatError(
                f"{folder}: has only {name}; write a tokenizer.json beside it once with: python -c "
                f'"from transformers import AutoTokenizer; AutoTokenizer.from_pretrained('
                f'{str(folder)!r}).save_pretrained({str(folder)!r})"'
            )
    raise ModelFormatError(
        f"{folder}: no tokenizer: expected tokenizer.json, vocab.txt, or vocab.json with merges.txt"
    )


def _apply_bert_options(backend: Tokenizer, options: dict[str, Any]) -> None:
    # transformers lets tokenizer_config.json overrule the normalizer stored in tokenizer.json.
    from tokenizers import normalizers

    normalizer = backend.normalizer
    if not isinstance(normalizer, normalizers.BertNormalizer):
        return
    if isinstance(options.get("do_lower_case"), bool):
        normalizer.lowercase = options["do_lower_case"]
    if isinstance(options.get("tokenize_chinese_chars"), bool):
        normalizer.handle_chinese_chars = options["tokenize_chinese_chars"]
    if isinstance(options.get("strip_accents"), bool):
        normalizer.strip_accents = options["strip_accents"]


def _special_tokens(
    options: dict[str, Any], defaults: dict[str, str], folder: Path
) -> dict[str, AddedToken]:
    from tokenizers import AddedToken

    tokens = {}
    for name in _SPECIAL_NAMES:
        value = options.get(name) or defaults[name]
        flags: dict[str, bool] = {}
        if isinstance(value, dict):
            flags = {key: bool(value.get(key)) for key in ("lstrip", "rstrip", "single_word")}
            value = value.get("content")
        elif name == "mask_token":
            # RoBERTa-like vocabularies count the space before a mask as part of it.
            flags = {"lstrip": defaults["mask_token"] == "<mask>"}
        if not isinstance(value, str):
            raise ModelFormatError(f"{folder}: {name} in the tokenizer options must be a text")
        tokens[name] = AddedToken(value, special=True, normalized=False, **flags)
    return tokens


def _finish(
    backend: Tokenizer, folder: Path, tokens: dict[str, AddedToken]
) -> tuple[tuple[str, int], tuple[str, int]]:
    """Register the special tokens; returns (text, id) of the first and of the separating one."""
    found = {}
    for name in ("cls_token", "sep_token"):
        text = tokens[name].content
        index = backend.token_to_id(text)
        if index is None:
            raise ModelFormatError(f"{folder}: the vocabulary has no {name} {text!r}")
        found[name] = (text, index)
    known = [token for token in tokens.values() if backend.token_to_id(token.content) is not None]
    backend.add_special_tokens(known)
    path = folder / "added_tokens.json"
    if path.is_file():
        added = sorted(read_json(path).items(), key=lambda item: int(item[1]))
        backend.add_tokens([text for text, _ in added])
        for text, index in added:
            if backend.token_to_id(text) != index:
                raise ModelFormatError(
                    f"{path}: token {text!r} has id {index}, which does not follow the vocabulary"
                )
    return found["cls_token"], found["sep_token"]


def _read_vocab(path: Path) -> dict[str, int]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as err:
        raise ModelFormatError(f"{path}: cannot be read ({err})") from err
    if lines and not lines[-1]:
        lines.pop()
    return {token: index for index, token in enumerate(lines)}


def _wordpiece(folder: Path, model_type: str, options: dict[str, Any]) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    defaults = _BERT_TOKENS
    if model_type == "mpnet":
        defaults = {**_ROBERTA_TOKENS, "unk_token": "[UNK]"}
    tokens = _special_tokens(options, defaults, folder)
    vocab = _read_vocab(folder / "vocab.txt")
    unknown = tokens["unk_token"].content
    if unknown not in vocab:
        raise ModelFormatError(f"{folder / 'vocab.txt'}: has no unknown token {unknown!r}")
    backend = Tokenizer(models.WordPiece(vocab, unk_token=unknown, max_input_chars_per_word=100))
    backend.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=bool(options.get("tokenize_chinese_chars", True)),
        strip_accents=options.get("strip_accents"),
        lowercase=bool(options.get("do_lower_case", True)),
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    first, separator = _finish(backend, folder, tokens)
    if model_type == "mpnet":
        # Two separators stand between the texts of a pair.
        backend.post_processor = processors.TemplateProcessing(
            single=f"{first[0]}:0 $A:0 {separator[0]}:0",
            pair=f"{first[0]}:0 $A:0 {separator[0]}:0 {separator[0]}:0 $B:1 {separator[0]}:1",
            special_tokens=[first, separator],
        )
    else:
        backend.post_processor = processors.BertProcessing(separator, first)
    return backend


def _byte_level_bpe(folder: Path, options: dict[str, Any]) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    tokens = _special_tokens(options, _ROBERTA_TOKENS, folder)
    vocab, merges = str(folder / "vocab.json"), str(folder / "merges.txt")
    try:
        model = models.BPE.from_file(
            vocab, merges, continuing_subword_prefix="", end_of_word_suffix="", fuse_unk=False
        )
    except Exception as err:  # the library raises bare Exception
        raise ModelFormatError(f"{folder}: vocab.json or merges.txt is not valid ({err})") from err
    backend = Tokenizer(model)
    prefix_space = bool(options.get("add_prefix_space", False))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    backend.decoder = decoders.ByteLevel()
    first, separator = _finish(backend, folder, tokens)
    backend.post_processor = processors.RobertaProcessing(
        separator, first, trim_offsets=True, add_prefix_space=prefix_space
    )
    return backend
