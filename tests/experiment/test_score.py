"""Scores by document: nats, tokens and bytes of all documents together are those of the rows."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from mobillama.config import ModelConfig, TrainConfig
from mobillama.data.shards import read_shards, write_shards
from mobillama.errors import InputError
from mobillama.experiment.score import rows_of_each_source, score_documents
from mobillama.model.initialise import build_model
from mobillama.train.step import TrainStep
from mobillama.train.validate import validate

SHAPE = {"vocab_size": 300, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
CONFIG = ModelConfig.model_validate({**SHAPE, "num_attention_heads": 2, "max_position_embeddings": 32})


def test_documents_add_up_to_the_validation_of_the_same_rows(documented: Path) -> None:
    shards = read_shards(documented)
    model = build_model(CONFIG, 3)
    scores = score_documents(model, shards, np.arange(shards.num_validation_rows))
    step = TrainStep(model, TrainConfig(compile=False), torch.device("cpu"), torch.float32)
    whole = validate(step, shards, rows=0, batch_rows=4)
    assert sum(score.tokens for score in scores) == whole["tokens"]
    assert sum(score.bytes for score in scores) == whole["bytes"]
    assert math.fsum(score.nats for score in scores) / whole["tokens"] == pytest.approx(whole["loss"], rel=1e-6)
    for name, part in whole["sources"].items():
        mine = [score for score in scores if score.source == name]
        assert sum(score.bytes for score in mine) == pytest.approx(part["bytes"], abs=part["bytes"] // 50)


def test_a_document_scores_what_its_tokens_cost(documented: Path) -> None:
    shards = read_shards(documented)
    model = build_model(CONFIG, 4)
    row = next(n for n in range(shards.num_validation_rows) if len(shards.spans(n, "validation")) > 1)
    ids = torch.from_numpy(shards.validation_rows([row]))
    logits = model(ids[:, :-1]).log_softmax(-1)
    nats = -logits.detach().gather(-1, ids[:, 1:, None])[0, :, 0]
    span = shards.spans(row, "validation")[1]
    found = {score.document: score for score in score_documents(model, shards, np.array([row]))}[span.document]
    assert found.tokens == span.token_count
    assert found.bytes == span.byte_end - span.byte_start
    start = span.token_start - 1
    assert found.nats == pytest.approx(nats[start : start + span.token_count].sum().item(), rel=1e-5)


def test_rows_are_spread_over_every_source(documented: Path) -> None:
    shards = read_shards(documented)
    rows = rows_of_each_source(shards, 5)
    sources = shards.row_sources(rows, "validation")
    assert np.bincount(sources).tolist() == [5] * len(shards.sources)
    assert sorted({*rows.tolist()}) == rows.tolist()
    assert len(rows_of_each_source(shards, 10**6)) == shards.num_validation_rows


def test_shards_without_documents_are_refused(tmp_path: Path) -> None:
    write_shards(tmp_path / "s", np.zeros((4, 33), int), np.zeros((2, 33), int), vocab_size=300)
    with pytest.raises(InputError, match="no document spans"):
        score_documents(build_model(CONFIG, 1), read_shards(tmp_path / "s"), np.arange(2))
