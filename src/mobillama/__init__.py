"""Small language models that share one feed-forward network, from raw text to an answer, every step open to checking.

The public face; everything heavy is imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from mobillama.data.shards import read_shards as read_shards
    from mobillama.language_model import LanguageModel as LanguageModel
    from mobillama.loading import load as load
    from mobillama.train.ledger import read_ledger as read_ledger

_WHERE = {
    "load": "mobillama.loading",
    "LanguageModel": "mobillama.language_model",
    "read_shards": "mobillama.data.shards",
    "read_ledger": "mobillama.train.ledger",
}

__all__ = ["LanguageModel", "__version__", "load", "read_ledger", "read_shards"]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        import importlib

        return getattr(importlib.import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'mobillama' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
