"""Language: what is identified, and what a subset that asks for some drops."""

from __future__ import annotations

import time

import pytest
from datatrove.data import Document

from mobillama.config import SubsetConfig
from mobillama.data.language import SAMPLE, Language, identify

TEXTS = {
    "en": "The ships sailed past the harbour, and the children waved at them until they were gone.",
    "de": "Die Schiffe fuhren am Hafen vorbei, und die Kinder winkten ihnen, bis sie nicht mehr zu sehen waren.",
    "fr": "Les bateaux passaient devant le port, et les enfants leur faisaient signe jusqu'à leur départ.",
    "zh": "两艘船驶过港口,孩子们向它们挥手,直到看不见为止。",
    "ru": "Корабли прошли мимо гавани, и дети махали им, пока те не скрылись из виду.",
}


@pytest.mark.parametrize("code", TEXTS)
def test_languages_are_told_apart(code: str):
    found, score = identify(TEXTS[code] + "\r\n\n" + TEXTS[code])
    assert found == code
    assert 0.65 < score <= 1


@pytest.mark.parametrize("text", ["", " \n\t", "\0"])
def test_a_text_without_words_has_no_language_or_a_poor_score(text: str):
    language, score = identify(text)
    assert language == "" or score < 0.65


def test_a_subset_keeps_the_languages_it_asks_for_and_others_keep_all():
    subsets = {"web": SubsetConfig(languages=("en", "de")), "book": SubsetConfig()}
    documents = [Document(TEXTS[code], code, [], {"source": source}) for source in ("web", "book") for code in TEXTS]
    found = list(Language(subsets).run(iter(documents)))
    assert [document.metadata.get("language") for document in found] == [*TEXTS, *[None] * len(TEXTS)]
    dropped = [(document.metadata["source"], document.id) for document in found if "dropped" in document.metadata]
    assert dropped == [("web", "fr"), ("web", "zh"), ("web", "ru")]
    assert {document.metadata["dropped"] for document in found if "dropped" in document.metadata} == {"language"}


def test_a_score_below_the_threshold_is_not_enough():
    text = "x = 17; y[3] += 4; for (i = 0; i < 9; i++) { z(i); }" * 3
    document = Document(text, "d", [], {"source": "web"})
    assert identify(text)[1] < 0.65
    found = next(Language({"web": SubsetConfig(languages=(identify(text)[0],))}).run(iter([document])))
    assert found.metadata["dropped"] == "language"


def test_long_texts_cost_no_more_than_their_beginning():
    text = TEXTS["en"] * 1_000_000
    start = time.perf_counter()
    assert identify(text) == identify(text[:SAMPLE])
    assert time.perf_counter() - start < 1
