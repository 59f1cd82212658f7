"""Which tensor type each kind of matrix gets in a GGUF file: `q4_0`, or `ffn=q6_k,attention=q4_0,...`.

A type rounds blocks of 32 or 256 weights along a row. A row that its block does not divide falls back to the next type
in FALLBACKS, which has a smaller block and no fewer bits; `f16` takes any row.
"""

from __future__ import annotations

from collections.abc import Mapping

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType

from mobillama.errors import InputError

TYPES = {
    "f32": GGMLQuantizationType.F32,
    "f16": GGMLQuantizationType.F16,
    "bf16": GGMLQuantizationType.BF16,
    "q8_0": GGMLQuantizationType.Q8_0,
    "q6_k": GGMLQuantizationType.Q6_K,
    "q5_0": GGMLQuantizationType.Q5_0,
    "q4_0": GGMLQuantizationType.Q4_0,
    "q3_k": GGMLQuantizationType.Q3_K,
}
# What general.file_type says of a file most of whose weights have this type.
FILE_TYPES = {
    "f32": LlamaFileType.ALL_F32,
    "f16": LlamaFileType.MOSTLY_F16,
    "bf16": LlamaFileType.MOSTLY_BF16,
    "q8_0": LlamaFileType.MOSTLY_Q8_0,
    "q6_k": LlamaFileType.MOSTLY_Q6_K,
    "q5_0": LlamaFileType.MOSTLY_Q5_0,
    "q4_0": LlamaFileType.MOSTLY_Q4_0,
    "q3_k": LlamaFileType.MOSTLY_Q3_K_M,
}
FALLBACKS = {"q3_k": "q4_0", "q6_k": "q8_0", "q8_0": "f16", "q5_0": "f16", "q4_0": "f16"}
KINDS = ("attention", "ffn", "embedding", "head")
# The default. By `bench quality` on mini-amber and quickstart-shared, rounding costs most in the head, then in the
# embedding; all of attention costs about as much as the one FFN, and has many times its weights in the paper's models.
MIXED = {"attention": "q4_0", "ffn": "q5_0", "embedding": "q5_0", "head": "q6_k"}
DEFAULT = "mixed"


def parse_types(spec: str, *, tied: bool) -> dict[str, str]:
    """The type of every kind of matrix from a `--type` value; norms are always f32.

    spec: parts with commas between: a type for all kinds or `mixed` (the default table), then `kind=type` for some.
    tied: the model has no head of its own; the embedding is then of kind `head` and the kind `embedding` is unused.
    Errors: InputError for an unknown kind or type, a kind given twice, or `embedding` for a tied model.

    >>> parse_types("q4_0,head=q6_k", tied=True)
    {'attention': 'q4_0', 'ffn': 'q4_0', 'head': 'q6_k'}
    """
    base, named = MIXED, dict[str, str]()
    for at, part in enumerate(spec.split(",")):
        kind, equals, name = (text.strip().lower() for text in part.partition("="))
        if not equals and at == 0:
            base = MIXED if kind == DEFAULT else dict.fromkeys(KINDS, _known(kind, spec))
        elif kind not in KINDS or kind in named:
            raise InputError(
                f"--type {spec!r}: found {part.strip()!r}; expected one type or {DEFAULT!r}, then kind=type once for "
                f"any of {', '.join(KINDS)}, for example q4_0,head=q6_k"
            )
        else:
            named[kind] = _known(name, spec)
    if tied and "embedding" in named:
        raise InputError(
            f"--type {spec!r}: this model's embedding is its head too (tie_word_embeddings); give head=... instead"
        )
    return {kind: named.get(kind, base[kind]) for kind in KINDS if not (tied and kind == "embedding")}


def fitting_type(name: str, cols: int) -> str:
    """`name`, or the first of its fallbacks whose block divides rows of `cols` weights.

    >>> fitting_type("q6_k", 96), fitting_type("q6_k", 40)
    ('q8_0', 'f16')
    """
    while cols % GGML_QUANT_SIZES[TYPES[name]][0]:
        name = FALLBACKS[name]
    return name


def row_bytes(name: str, cols: int) -> int:
    """Bytes of a row of `cols` weights, a multiple of the type's block."""
    weights, size = GGML_QUANT_SIZES[TYPES[name]]
    return cols // weights * size


def spell(types: Mapping[str, str]) -> str:
    """A `--type` value that gives these types."""
    return ",".join(f"{kind}={name}" for kind, name in types.items())


def _known(name: str, spec: str) -> str:
    if name not in TYPES:
        raise InputError(
            f"--type {spec!r}: {name!r} is no type that is known here; use {DEFAULT} or one of: {', '.join(TYPES)}"
        )
    return name
