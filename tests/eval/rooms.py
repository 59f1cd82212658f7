"""What the tests of evaluation share: a tiny model with LLaMA's tokenizer, its twin in HFLM, cut-down data."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.model.twins import llama_twin

from mobillama.config import ModelConfig
from mobillama.model.initialise import build_model
from mobillama.model.transformer import Transformer
from mobillama.model.weights import save_model
from mobillama.tokenizer.tokenizer import Tokenizer

SHAPE: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,  # far from uniform, so that a wrong position or mask shows
}
SUBJECTS = ("anatomy", "high_school_european_history")  # the second's prompts are longer than the context


def model_with_llamas_vocabulary(seed: int, context: int = 2048) -> Transformer:
    """A tiny model of random weights."""
    return build_model(ModelConfig(**SHAPE, max_position_embeddings=context), seed)


def save_folder(folder: Path, model: Transformer, tokenizer: Tokenizer) -> Path:
    """The model as a folder with its tokenizer."""
    save_model(folder, model, model.config)
    tokenizer.save(folder)
    return folder


def harness_model(model: Transformer, folder: Path, *, bos: bool) -> Any:
    """lm_eval's own HFLM on the same weights and tokenizer."""
    from lm_eval.models.huggingface import HFLM
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    if bos:
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
        )
    return HFLM(
        pretrained=llama_twin(model),
        tokenizer=tokenizer,
        add_bos_token=bos,
        batch_size=2,
        device="cpu",
        max_length=model.config.max_position_embeddings,
    )


def cut_data(source: Path, out: Path, rows: int, names: Sequence[str]) -> Path:
    """Benchmarks with the first rows of each file (train and dev whole: shots are drawn from them).

    Of MMLU's subjects all but SUBJECTS keep one row: the data set does not load without them.
    """
    for name in names:
        for path in sorted((source / name).rglob("*.jsonl.gz")):
            lines = gzip.decompress(path.read_bytes()).splitlines(keepends=True)
            if name == "mmlu" and path.parent.name not in SUBJECTS:
                lines = lines[:1]
            elif not path.name.startswith(("train", "dev")):
                lines = lines[:rows]
            (out / path.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
            (out / path.relative_to(source)).write_bytes(gzip.compress(b"".join(lines), mtime=0))
        shutil.copy(source / name / "README.md", out / name / "README.md")
    return out
