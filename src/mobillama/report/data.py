"""The page of shards and the corpus they were made from, from their two manifests alone: `<shards>.html`.

It lies beside the artefact, not in it: an artefact is sealed. Shown are the funnel per subset, the mix beside the
recipe's target, the reasons for dropping in words, seconds, and the digests that tie it all together.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mobillama import manifest
from mobillama.errors import DamagedFileError, InputError
from mobillama.report.chart import format_tick
from mobillama.report.funnel import EDITED, KEPT, REASON_COLOURS, Bar, Group, draw_bars
from mobillama.report.page import REASONS, render

MEANINGS = {
    **REASONS,
    "near_duplicate": "nearly an earlier document: signatures of its runs of words agree (MinHash)",
    "benchmark_overlap": "shares a run of words with a benchmark",
    "language": "not in a language that the recipe keeps, or not surely",
    # Gopher, repetition (Rae et al. 2021, table A1).
    "dup_para_frac": "too many of its paragraphs repeat another one",
    "dup_para_char_frac": "too many of its characters are in repeated paragraphs",
    "dup_line_frac": "too many of its lines repeat another one",
    "dup_line_char_frac": "too many of its characters are in repeated lines",
    # Gopher, quality (Rae et al. 2021, section A.1.1).
    "gopher_short_doc": "fewer words than Gopher's rules ask for",
    "gopher_long_doc": "more words than Gopher's rules allow",
    "gopher_below_avg_threshold": "its words are too short on average",
    "gopher_above_avg_threshold": "its words are too long on average",
    "gopher_too_many_hashes": "too many # signs for its words",
    "gopher_too_many_ellipsis": "too many ellipses for its words",
    "gopher_too_many_bullets": "too many of its lines begin with a bullet",
    "gopher_too_many_end_ellipsis": "too many of its lines end in an ellipsis",
    "gopher_below_alpha_threshold": "too many of its words hold no letter",
    "gopher_enough_stop_words": "too few of the commonest English words",
    # C4 (Raffel et al. 2020, section 2.2).
    "lorem_ipsum": "holds filler text (lorem ipsum)",
    "javascript": "asks to switch JavaScript on",
    "policy": "speaks of cookies or terms of use",
    "curly_bracket": "holds a curly bracket: taken for code by C4's rules",
    "too_few_sentences": "too few sentences are left after C4's rules for lines",
    # FineWeb (Penedo et al. 2024, section 3.6).
    "line_punct_ratio": "too few of its lines end in punctuation",
    "short_line_ratio": "too many of its lines are short",
    "char_dup_ratio": "too many of its characters are in repeated lines",
    "list_ratio": "too many line ends for its words: a list",
    # Code, after StarCoder (Li et al. 2023, section 3.1).
    "xml": "XML, not code",
    "long_line": "a line longer than source code has",
    "mean_line": "its lines are longer on average than those of source code",
    "generated": "says that a program wrote it",
    # What no real text looks like (code, light).
    "few_letters": "hardly any letters or digits",
    "replacement_characters": "too many replacement characters: decoding went wrong",
    "one_line": "one line over and over",
}
N_GRAM = re.compile(r"(top|duplicated)_(\d+)_(?:gram|n_grams)$")
FILTERS = ("gopher_repetition", "gopher_quality", "gopher", "c4", "fineweb", "code", "light")
STARTS = tuple(name + mark for name in FILTERS for mark in "_.:/ ")


def page_path(shards: Path) -> Path:
    """Where the page of the shards at `shards` lies: beside them."""
    return shards.with_name(f"{shards.name}.html")


def write_data_page(shards: Path, out: Path | None = None) -> Path:
    """Write the page of a shards folder to `out` (by default `<shards>.html`); returns the file.

    The corpus is looked for beside the shards; without it, or if it is another one, the page says so and has no funnel.
    Errors: InputError if `shards` is no shards folder, MissingExtraError without jinja2.
    """
    made, out = manifest.read(shards, "shards"), out or page_path(shards)
    corpus, absent = _find_corpus(shards, made)
    funnel = _Funnel(corpus.counts.get("funnel", {})) if corpus else None
    mix = describe_mix(made)
    page = render(
        "data.html.j2",
        title=f"Data {shards.name}",
        shards=made,
        counts=made.counts,
        funnel=funnel,
        picture=draw_funnel(funnel) if funnel else "",
        absent=absent,
        mix=mix,
        mix_picture=_draw_mix(mix),
        stages=_stages([found for found in (corpus, made) if found]),
        parts=_lineage(shards, made, corpus),
        files=[entry for entry in corpus.made_from if entry["kind"] == "source file"] if corpus else [],
    )
    manifest.write_file(out, page.encode())
    return out


def meaning_of(reason: str) -> str:
    """What a reason for dropping means, in words; "" for one that is not known.

    >>> meaning_of("duplicate") == meaning_of("gopher_repetition.duplicated_5_n_grams")
    False
    """
    names = [reason]
    names += [reason[len(start) :] for start in STARTS if reason.startswith(start)]
    for name in names:
        if name in MEANINGS:
            return MEANINGS[name]
        if found := N_GRAM.match(name):
            which, size = found.groups()
            said = f"its commonest run of {size} words is" if which == "top" else f"repeated runs of {size} words are"
            return f"{said} too large a part of it"
    return ""


class _Funnel:
    """A corpus manifest's funnel, by subset and in all: documents, bytes and, where it has them, tokens."""

    def __init__(self, funnel: Mapping[str, Any]) -> None:
        self.has_tokens = bool(funnel) and all("tokens_in" in found for found in funnel.values())
        self.size = "tokens" if self.has_tokens else "bytes"
        self.units = ("documents", self.size)
        self.subsets: list[dict[str, Any]] = [{"name": name, **found} for name, found in funnel.items()]
        lost = Counter[str]()
        for row in self.subsets:
            for reason, pair in row["dropped"].items():
                lost[reason] += pair[self.size]
        documents = {r: sum(row["dropped"].get(r, {}).get("documents", 0) for row in self.subsets) for r in lost}
        order = sorted((reason for reason in lost if documents[reason]), key=lambda r: (-lost[r], -documents[r], r))
        self.reasons = [
            {
                "reason": reason,
                "meaning": meaning_of(reason),
                "documents": documents[reason],
                "size": lost[reason],
                "colour": f"reason-{place}" if place < REASON_COLOURS else "muted",
                "subsets": [row["name"] for row in self.subsets if row["dropped"].get(reason, {}).get("documents")],
            }
            for place, reason in enumerate(order)
        ]
        keys = ("documents_in", "documents_out", f"{self.size}_in", f"{self.size}_out", "bytes_out")
        self.total = {key: sum(row[key] for row in self.subsets) for key in keys}
        self.total["edited"] = sum(map(self.edited, self.subsets))

    def edited(self, row: Mapping[str, Any]) -> int:
        """Tokens (or bytes) that documents which stay have lost: by masks, and by lines that C4's rules remove."""
        dropped = sum(pair[self.size] for pair in row["dropped"].values())
        return max(0, int(row[f"{self.size}_in"] - row[f"{self.size}_out"] - dropped))

    def kept(self, row: Mapping[str, Any]) -> float | None:
        """Share of tokens (or bytes) of a subset that stays; None if it had none."""
        into = row[f"{self.size}_in"]
        return row[f"{self.size}_out"] / into if into else None


def draw_funnel(funnel: _Funnel) -> str:
    """Per subset a bar of its documents and one of its tokens (or bytes): kept, and dropped by reason."""
    groups = []
    for row in funnel.subsets:
        bars = []
        for unit in funnel.units:
            into, out = row[f"{unit}_in"], row[f"{unit}_out"]
            dropped = [
                (t["reason"], row["dropped"].get(t["reason"], {}).get(unit, 0), t["colour"]) for t in funnel.reasons
            ]
            parts = [(KEPT, out, "series-2"), *dropped]
            parts.append((EDITED, funnel.edited(row) if unit == funnel.size else 0, "edited"))
            share = f" ({out / into:.1%})" if into else ""
            bars.append(Bar(unit, f"{format_count(into)} → {format_count(out)}{share}", parts))
        groups.append(Group(row["name"], bars))
    shown = [(told["reason"], told["colour"]) for told in funnel.reasons if told["colour"] != "muted"]
    legend = [(KEPT, "series-2"), *shown]
    if len(funnel.reasons) > len(shown):
        legend.append(("other reasons", "muted"))
    if any(map(funnel.edited, funnel.subsets)):
        legend.append((EDITED, "edited"))
    return draw_bars(groups, legend, title="What became of each subset")


def format_count(value: float) -> str:
    """A count with three digits: 950, 15.1k, 21.7M.

    >>> [format_count(value) for value in (0, 950, 15130, 21_740_304)]
    ['0', '950', '15.1k', '21.7M']
    """
    return format_tick(float(f"{value:.3g}"))


def describe_mix(made: manifest.Manifest) -> dict[str, Any]:
    """Tokens per subset of the shards, their shares, and the recipe's targets with the distance between the two.

    `distance` is the total variation distance of the two mixes (0 = the same, 1 = nothing in common), None without
    targets. `ratio` is a subset's share over its target share.
    """
    wanted = {name: int(found.get("target_tokens", 0)) for name, found in made.recipe.get("subset", {}).items()}
    sources = made.counts.get("sources", {})
    tokens = {name: sum(found[split]["tokens"] for split in found) for name, found in sources.items()}
    rows: list[dict[str, Any]] = []
    total, all_wanted = sum(tokens.values()), sum(wanted.values())
    for name in [*tokens, *(name for name in wanted if name not in tokens)]:
        share = tokens.get(name, 0) / total if total else 0.0
        target = wanted.get(name, 0) / all_wanted if all_wanted else None
        rows.append(
            {
                "name": name,
                "tokens": tokens.get(name, 0),
                "documents": sum(sources[name][split]["documents"] for split in sources[name]) if name in tokens else 0,
                "share": share,
                "target_tokens": wanted.get(name, 0),
                "target": target,
                "ratio": share / target if target else None,
            }
        )
    distance = 0.5 * sum(abs(row["share"] - row["target"]) for row in rows) if all_wanted else None
    return {"rows": rows, "tokens": total, "target_tokens": all_wanted, "distance": distance}


def _draw_mix(mix: Mapping[str, Any]) -> str:
    rows: Sequence[Mapping[str, Any]] = mix["rows"]
    if mix["distance"] is None or not rows:
        return ""
    largest = max(max(row["share"], row["target"] or 0.0) for row in rows)
    groups = [
        Group(
            row["name"],
            [
                Bar("here", f"{row['share']:.1%}", [("here", row["share"], "series-0")]),
                Bar("target", f"{row['target'] or 0:.1%}", [("target", row["target"] or 0.0, "series-1")]),
            ],
        )
        for row in rows
    ]
    return draw_bars(groups, [], title="Share of tokens, here and in the target", largest=largest)


def _stages(made: Sequence[manifest.Manifest]) -> dict[str, Any]:
    """Seconds of every stage, and inside it of every step (all workers together)."""
    rows = []
    for found in made:
        steps = found.circumstance.get("step_seconds", {})
        for stage, seconds in found.circumstance.get("seconds", {}).items():
            inside = [{"name": name, "seconds": value} for name, value in steps.get(stage, {}).items()]
            rows.append({"name": stage, "seconds": seconds, "steps": inside})
    every = [row["seconds"] for row in rows] + [step["seconds"] for row in rows for step in row["steps"]]
    return {"rows": rows, "longest": max(every, default=0) or 1, "total": sum(row["seconds"] for row in rows)}


def _find_corpus(shards: Path, made: manifest.Manifest) -> tuple[manifest.Manifest | None, str]:
    """The corpus the shards were made from, or None and why it is not shown."""
    origin = next((entry for entry in made.made_from if entry["kind"] == "corpus"), None)
    if origin is None:
        return None, "These shards were not made from a corpus."
    folder = shards.with_name(origin["name"])
    try:
        found = manifest.read(folder, "corpus")
    except (InputError, DamagedFileError):
        return None, f"The corpus {origin['name']} does not lie beside the shards: there is no funnel to show."
    if found.digest() != origin["digest"]:
        return None, f"The corpus {origin['name']} beside the shards is another one than they were made from."
    return found, ""


def _lineage(shards: Path, made: manifest.Manifest, corpus: manifest.Manifest | None) -> list[dict[str, str]]:
    parts = [{"kind": "shards", "name": shards.name, "digest": made.digest()}]
    parts += [{"kind": entry["kind"], "name": entry["name"], "digest": entry["digest"]} for entry in made.made_from]
    if corpus:
        parts += [
            {"kind": entry["kind"], "name": entry["name"], "digest": entry["digest"]}
            for entry in corpus.made_from
            if entry["kind"] != "source file"
        ]
    return parts
