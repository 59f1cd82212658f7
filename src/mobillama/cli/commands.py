"""The application with all of its commands."""

# Each of these adds its commands to `app`; help lists them in this order.
# isort: off
from mobillama.cli import quickstart, plan, data, tokenizer, train, replay  # noqa: F401
from mobillama.cli import artefact, publish  # noqa: F401
from mobillama.cli import experiment, generate, model, eval, compare, bench  # noqa: F401

# isort: on
from mobillama.cli.app import app

__all__ = ["app"]
