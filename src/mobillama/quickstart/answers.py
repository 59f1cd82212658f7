"""What the quickstart's models answer: in PyTorch, and as rounded files in the engine, with the speed seen there."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mobillama import manifest
from mobillama.cores import cores

PROMPTS = ("import os\n\ndef ", "class Error(Exception):\n", '    """Return the ', "The value of the ")
SAMPLING: dict[str, Any] = {"max_new_tokens": 64, "temperature": 0.7, "top_p": 0.9, "seed": 11111}
LOOK = {"new": 64, "rounds": 9}  # ids that the engine adds to a prompt, how often
AGAIN = "remove it and run the same command again"
KEPT = ("bytes", "bits_per_weight", "types")  # of what was written, for the page


def write_samples(out: Path, names: Sequence[str]) -> dict[str, Any]:
    """What each model adds to each prompt; kept in samples.json as long as the models stay the same."""
    path = out / "samples.json"
    digests = {name: manifest.read(out / name / "model", "model").digest() for name in names}
    if path.is_file():
        found = manifest.read_object(path, AGAIN)
        asked = {"models": digests, "prompts": list(PROMPTS), "settings": SAMPLING}
        if {name: found.get(name) for name in asked} == asked:
            return found
    from mobillama.loading import load

    started = time.monotonic()
    texts = {name: load(out / name / "model").generate(list(PROMPTS), **SAMPLING) for name in names}
    samples = {
        "models": digests,
        "prompts": list(PROMPTS),
        "settings": SAMPLING,
        "samples": [
            {"prompt": prompt, "continuations": {name: texts[name][place] for name in names}}
            for place, prompt in enumerate(PROMPTS)
        ],
        "seconds": time.monotonic() - started,
    }
    manifest.write_file(path, json.dumps(samples, indent=1, ensure_ascii=False).encode() + b"\n")
    return samples


def try_engine(out: Path, names: Sequence[str]) -> dict[str, Any]:
    """A .gguf file of each model and its speed in the engine; kept in engine.json as long as the models stay the same.

    Error: MissingLibraryError if the engine was not built.
    """
    path, files = out / "engine.json", {name: out / f"{name}.gguf" for name in names}
    digests = {name: manifest.read(out / name / "model", "model").digest() for name in names}
    if path.is_file() and all(file.is_file() for file in files.values()):
        found = manifest.read_object(path, AGAIN)
        if found.get("digests") == digests:
            return found
    from mobillama.export.gguf_file import quantize_model
    from mobillama.runtime.speed import look_at_speed
    from mobillama.tokenizer.gguf_vocabulary import read_tokenizer

    started = time.monotonic()
    written = {}
    for name, file in files.items():
        file.unlink(missing_ok=True)
        written[name] = quantize_model(out / name / "model", file)
    prompts = {name: read_tokenizer(file).encode(PROMPTS[0]) for name, file in files.items()}
    seen = look_at_speed(files, prompts, **LOOK)
    engine = {
        "digests": digests,
        "isa": seen["isa"],
        "threads": cores(),
        **LOOK,
        "models": {
            name: {
                **seen["models"][name],
                "file": files[name].name,
                **{key: made[key] for key in ("bytes", "bits_per_weight", "types")},
            }
            for name, made in written.items()
        },
        "seconds": time.monotonic() - started,
    }
    manifest.write_file(path, json.dumps(engine, indent=1).encode() + b"\n")
    return engine
