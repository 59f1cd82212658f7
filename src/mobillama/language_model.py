"""A model with its tokenizer on a device: text in, text out, whole or as it comes.

It is read from a model folder, a run or a name on the Hugging Face hub; a model in a GGUF file: mobillama.runtime.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mobillama.config import ModelConfig
from mobillama.device import dtype_name, place
from mobillama.errors import InputError
from mobillama.generation.sampling import Settings
from mobillama.generation.sequences import Generation
from mobillama.generation.text import TextModel
from mobillama.model.end_ids import read_end_ids
from mobillama.model.generate import generate
from mobillama.model.hub import find_folder
from mobillama.model.ids import as_rows
from mobillama.model.transformer import Transformer
from mobillama.model.weights import load_model
from mobillama.tokenizer.tokenizer import Tokenizer

# B batch, T time, V vocab_size


class LanguageModel(TextModel):
    """A Transformer, its tokenizer and where it computes.

    >>> model = LanguageModel.load(model_folder, device="cpu")
    >>> model.config.num_ffn_blocks
    1
    >>> model([5, 6, 7]).shape == (3, model.config.vocab_size)
    True
    >>> for piece in model.generate("def ", stream=True, max_new_tokens=4, seed=1):
    ...     shown = piece  # print(piece, end="", flush=True)
    >>> model.generate(["def ", "class "], max_new_tokens=4) == [
    ...     model.generate("def ", max_new_tokens=4), model.generate("class ", max_new_tokens=4)]
    True
    """

    def __init__(
        self, model: Transformer, tokenizer: Tokenizer | None, name: str = "model", *, end_ids: Collection[int] = ()
    ) -> None:
        """Put together what `load` would read; the model stays where it is and keeps its type.

        end_ids: ids that end a text beside those that the tokenizer names.
        """
        if tokenizer is not None and tokenizer.vocab_size > model.config.vocab_size:
            raise InputError(
                f"the tokenizer of {name} has {tokenizer.vocab_size} pieces, the model an embedding of"
                f" {model.config.vocab_size} rows: this is not the tokenizer the model was trained with"
            )
        self.model = model.eval()
        self.name = name
        self._tokenizer, self._end_ids = tokenizer, frozenset(end_ids)

    @classmethod
    def load(
        cls, name: str | Path, *, device: str = "auto", dtype: str = "auto", revision: str | None = None
    ) -> LanguageModel:
        """Read a model folder, a run's model, or a hub model `owner/name` (at a branch, tag or commit).

        device: auto (CUDA, then MPS, then CPU), cuda, cuda:1, mps, cpu. dtype of the weights: auto (bfloat16 where
        the device is fast at it), bfloat16, float32.
        Errors: InputError if the model is not found or its files do not fit together; RecipeError for the device.
        """
        here = place(device, dtype)
        folder = find_folder(name, revision)
        model = load_model(folder, dtype=here.dtype).to(here.device)
        has_tokenizer = any((folder / file).is_file() for file in ("tokenizer.json", "tokenizer.model"))
        end_ids = read_end_ids(folder, model.config.vocab_size)
        return cls(model, Tokenizer.load(folder) if has_tokenizer else None, str(name), end_ids=end_ids)

    @property
    def config(self) -> ModelConfig:
        """The model's shapes."""
        return self.model.config

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer. Error: InputError if the folder held none."""
        if self._tokenizer is None:
            raise InputError(
                f"{self.name} holds neither tokenizer.json nor tokenizer.model, so text cannot be read; copy the"
                " tokenizer the model was trained with into the folder (token ids work without)"
            )
        return self._tokenizer

    @property
    def end_ids(self) -> frozenset[int]:
        """The ids any of which ends a text: those of the tokenizer, of config.json and of generation_config.json."""
        return super().end_ids | self._end_ids

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.model.head_weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The type of its weights."""
        return self.model.head_weight.dtype

    def __repr__(self) -> str:
        size = sum(weight.numel() for weight in self.model.parameters())
        return f"LanguageModel({self.name!r}: {size:,} parameters, {dtype_name(self.dtype)} on {self.device})"

    @torch.no_grad()
    def __call__(
        self, ids: Sequence[int] | Sequence[Sequence[int]] | npt.NDArray[Any] | Tensor, attention_mask: Any = None
    ) -> Tensor:
        """Float32 logits of the next token: (T, V) for ids (T,), (B, T, V) for ids (B, T).

        attention_mask (B, T): false where a position is padding. Errors: InputError for ids that are ragged, empty,
        outside the vocabulary or longer than the context.
        """
        rows = as_rows(ids, self.config.vocab_size, self.config.max_position_embeddings)  # (B, T)
        mask = None if attention_mask is None else torch.as_tensor(attention_mask, device=self.device).view(rows.shape)
        logits = self.model(rows.to(self.device), attention_mask=mask).float()  # (B, T, V)
        return logits[0] if np.ndim(ids) == 1 else logits  # type: ignore[no-any-return]

    def _continue(self, prompts: Sequence[Sequence[int]], settings: Settings, own: Mapping[str, Any]) -> Generation:
        return generate(self.model, prompts, settings)
