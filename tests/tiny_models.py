"""Tiny random models of the supported architectures, saved as Hugging Face folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FAMILIES = ("bert", "roberta", "xlm-roberta", "camembert", "distilbert", "electra", "mpnet")
TASKS = (
    "features",
    "sequence-classification",
    "token-classification",
    "question-answering",
)

_CLASSES = {
    "bert": "Bert",
    "roberta": "Roberta",
    "xlm-roberta": "XLMRoberta",
    "camembert": "Camembert",
    "distilbert": "DistilBert",
    "electra": "Electra",
    "mpnet": "MPNet",
}
_SUFFIXES = {
    "features": "Model",
    "sequence-classification": "ForSequenceClassification",
    "token-classification": "ForTokenClassification",
    "question-answering": "ForQuestionAnswering",
}
_TOKENIZERS = {
    "bert": "BertTokenizer",
    "roberta": "RobertaTokenizer",
    "xlm-roberta": "XLMRobertaTokenizer",
    "camembert": "CamembertTokenizer",
    "distilbert": "DistilBertTokenizer",
    "electra": "BertTokenizer",
    "mpnet": "MPNetTokenizer",
}

CORPUS = [
    "The quick brown fox jumps over the lazy dog and the cat sleeps on a warm mat.",
    "Ada Lovelace wrote the first program in London, and Alan Turing worked in Manchester.",
    "Who wrote the first program? What is the capital of France? Where did Turing work?",
    "Unbelievably long words like counterrevolutionaries get split into pieces; cafe, naive.",
    "The weather is good, the film was bad, 2024 and 1936 are numbers: it's a test!",
    "Paris is the capital of France. Berlin is the capital of Germany. Rome is in Italy.",
] * 4

MAX_POSITIONS = 64


def wordpiece_vocab(special: list[str]) -> list[str]:
    """A WordPiece vocabulary with whole words and single characters."""
    words = sorted(
        {
            "".join(c for c in word if c.isalnum())
            for line in CORPUS
            for word in line.lower().split()
        }
        - {""}
    )
    characters = [chr(code) for code in range(33, 127)]
    pieces = [f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz0123456789"]
    listed = special + characters + pieces + words
    return list(dict.fromkeys(listed))


def _byte_level(folder: Path) -> int:
    from tokenizers import ByteLevelBPETokenizer

    backend = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    backend.train_from_iterator(CORPUS, vocab_size=400, special_tokens=special, min_frequency=1)
    backend.save_model(str(folder))
    return int(backend.get_vocab_size())


def _unigram(folder: Path, special: list[str]) -> int:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    ids = {text: backend.token_to_id(text) for text in ("<s>", "</s>")}
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=list(ids.items()),
    )
    backend.save(str(folder / "tokenizer.json"))
    return int(backend.get_vocab_size())


def write_tokenizer(folder: Path, family: str) -> int:
    """Write a small tokenizer of the family's kind; returns its vocabulary size."""
    roberta_tokens = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "cls_token": "<s>",
        "sep_token": "</s>",
        "pad_token": "<pad>",
        "mask_token": "<mask>",
    }
    options: dict[str, Any] = {
        "tokenizer_class": _TOKENIZERS[family],
        "model_max_length": MAX_POSITIONS,
    }
    if family in ("bert", "electra", "distilbert"):
        vocab = wordpiece_vocab(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
        options["do_lower_case"] = True
    elif family == "mpnet":
        vocab = wordpiece_vocab(["<s>", "<pad>", "</s>", "[UNK]", "<mask>"])
        options |= {**roberta_tokens, "unk_token": "[UNK]", "do_lower_case": True}
    else:
        options |= {**roberta_tokens, "unk_token": "<unk>"}
        if family == "roberta":
            size = _byte_level(folder)
        else:
            size = _unigram(folder, ["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
            options["tokenizer_class"] = "PreTrainedTokenizerFast"
            options["model_input_names"] = ["input_ids", "attention_mask"]
        (folder / "tokenizer_config.json").write_text(json.dumps(options))
        return size
    (folder / "vocab.txt").write_text("\n".join(vocab) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(options))
    return len(vocab)


def small_config(family: str, vocab_size: int, **changes: Any) -> Any:
    """A transformers configuration with heads of the usual width."""
    import transformers

    follow_pad = family in ("roberta", "xlm-roberta", "camembert", "mpnet")
    settings: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 128,
        "max_position_embeddings": MAX_POSITIONS + (2 if follow_pad else 0),
        "pad_token_id": 1 if follow_pad else 0,
    }
    if family == "distilbert":
        names = {
            "hidden_size": "dim",
            "num_hidden_layers": "n_layers",
            "num_attention_heads": "n_heads",
            "intermediate_size": "hidden_dim",
        }
        settings = {names.get(key, key): value for key, value in settings.items()}
    elif family == "electra":
        settings["embedding_size"] = 32
    settings |= {
        "id2label": {0: "O", 1: "B-PER", 2: "I-PER", 3: "B-LOC"},
        "label2id": {"O": 0, "B-PER": 1, "I-PER": 2, "B-LOC": 3},
    }
    return getattr(transformers, _CLASSES[family] + "Config")(**(settings | changes))


def random_model(family: str, task: str, config: Any) -> Any:
    """A transformers model whose every parameter, norms and biases included, is random."""
    import torch
    import transformers

    torch.set_num_threads(1)
    torch.manual_seed(sum(map(ord, family + task)))
    model = getattr(transformers, _CLASSES[family] + _SUFFIXES[task])(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            norm = "norm" in name.lower()
            width = parameter.shape[-1] if parameter.ndim > 1 else 64
            noise = torch.randn_like(parameter) * (0.1 if norm else 1.5 / width**0.5)
            parameter.copy_(noise + 1 if norm and name.endswith("weight") else noise)
    return model


class Builder:
    """Builds each model once and remembers its folder."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._built: dict[str, Path] = {}

    def __call__(self, family: str, task: str = "features", **changes: Any) -> Path:
        key = json.dumps([family, task, changes], sort_keys=True)
        if key not in self._built:
            folder = self._root / f"{family}-{task}-{len(self._built)}"
            folder.mkdir()
            size = write_tokenizer(folder, family)
            if task == "question-answering":
                changes = {"id2label": {0: "LABEL_0", 1: "LABEL_1"}, "label2id": {}} | changes
            model = random_model(family, task, small_config(family, size, **changes))
            model.save_pretrained(folder)
            self._built[key] = folder
        return self._built[key]
