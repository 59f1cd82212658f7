#!/usr/bin/env python3
"""Check artefacts and runs with the standard library alone: python tools/verify.py PATH ...

Checks every folder under the paths that holds manifest.json or run.json as docs/formats.md says (Manifest, Run): files
by hash, lineage by digest, a run's ledger by its chain, checkpoints tensor by tensor. Prints differences, what was not
at hand, and the root digest of each. Exit status 1 if anything differs. Shares no code with the package.
"""

import hashlib
import json
import mmap
import re
import sys
from pathlib import Path

KNOWN = {"mobillama.manifest": 1, "mobillama.run": 2, "mobillama.digests": 1}
FORM = 2  # of a checkpoint; in form 1 the ledger gives the sha256 of its files, as it does of the model's at the end
SAID = {"checkpoint": ("weights.safetensors", "optimizer.safetensors"), "end": ("model.safetensors",)}
OUTSIDE = re.compile(r"^$|^/|(^|/)\.\.(/|$)")  # a name that leads out of its folder
LINES = {"start", "step", "validation", "resumed", *SAID}
ERRORS = (ValueError, KeyError, TypeError, AttributeError, OSError)


class Report:
    def __init__(self, path, kind="?"):
        self.path, self.kind, self.digest, self.wrong, self.missing = path, kind, "", [], []

    def compare(self, name, found, expected):
        if found is None:
            self.missing.append(f"{name}: not at hand")
        elif found != expected:
            self.wrong.append(f"{name}: found {found}; expected {expected}")


def sha256(path):
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of(tree, **how):
    return hashlib.sha256(json.dumps(tree, sort_keys=True, separators=(",", ":"), **how).encode()).hexdigest()


def read(path, name):
    tree = json.loads(path.read_text(encoding="utf-8"))
    if tree["format"] != name or tree["format_version"] > KNOWN[name]:
        raise ValueError(f"{tree['format']} version {tree['format_version']}; expected {name} up to {KNOWN[name]}")
    return tree


def root_digest(manifest):
    return sha256_of({key: value for key, value in manifest.items() if key != "circumstance"}, ensure_ascii=False)


def digest_of_origin(places, kind):
    """The digest of the first of some places that holds an origin of that kind, as `made_from` names it, or None."""
    name = {"source file": "", "tokenizer": "tokenizer.json"}.get(kind, "manifest.json")
    file = next((place / name for place in places if (place / name).is_file()), None)
    if file is None or kind in ("source file", "tokenizer"):
        return file and sha256(file)
    return root_digest(read(file, "mobillama.manifest"))


def check_artefact(folder):
    """Files and lineage of one artefact; the report and the manifest (None if it cannot be read)."""
    report, manifest = Report(folder), None
    try:
        manifest = read(folder / "manifest.json", "mobillama.manifest")
        report.kind, report.digest = manifest["kind"], root_digest(manifest)
        for name, entry in manifest["files"].items():
            path = folder / name
            if OUTSIDE.search(name) or not path.is_file():
                report.wrong.append(f"{name}: missing, or leads out of the folder")
            elif (path.stat().st_size, found := sha256(path)) != (entry["bytes"], entry["sha256"]):
                report.wrong.append(f"{name}: {path.stat().st_size} bytes, sha256 {found}; expected {entry}")
        there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
        there -= {*manifest["files"], "manifest.json"}
        report.wrong += [f"{name}: not in the manifest" for name in sorted(there)]
        folder = folder.resolve()
        runs = [p for up in folder.parents[:2] if (up / "run.json").is_file() for p in (up, up.parent)]
        for entry in manifest["made_from"]:
            kind, name = entry["kind"], entry["name"]
            places = [place / name for place in [*([] if kind == "source file" else [folder]), folder.parent, *runs]]
            places = [] if OUTSIDE.search(name) else [place for place in places if place.resolve() != folder]
            report.compare(f"{kind} {name}", digest_of_origin(places, kind), entry["digest"])
    except ERRORS as error:
        report.wrong.append(f"manifest.json cannot be used: {error!r}")
    return report, manifest


def read_ledger(path, report):
    """Whole lines of a ledger, their chain checked; an error stops at the line. Sets the report's digest."""
    lines, previous = [], "0" * 64
    whole = path.read_bytes().split(b"\n")[:-1]  # after the last newline: cut off by a kill
    report.digest = hashlib.sha256(whole[-1]).hexdigest() if whole else ""
    for number, raw in enumerate(whole, 1):
        try:
            line = json.loads(raw)
            promised, _ = line["circumstance"]["previous"], line["result"]["step" if number > 1 else "recipe"]
            if line["kind"] not in LINES or (number == 1) != (line["kind"] == "start") or promised != previous:
                raise ValueError(f"kind {line['kind']!r}, follows {promised}; the line before is {previous}")
        except ERRORS as error:
            report.wrong.append(f"ledger.jsonl line {number} is not the next line: {error!r}")
            return []
        previous = hashlib.sha256(raw).hexdigest()
        lines.append(line)
    return lines


def check_run(run, artefacts):
    """A run's ledger, and its shards, checkpoints and models against it."""
    report = Report(run, "run")
    try:
        told, lines = read(run / "run.json", "mobillama.run"), read_ledger(run / "ledger.jsonl", report)
        now = {"shards": told["shards"]["digest"], "recipe": told["recipe_digest"], "steps": told["steps"]}
        report.compare("run.json: recipe", sha256_of(told["recipe"]), now["recipe"])
        said = [line["result"] for line in lines if line["kind"] in ("start", "resumed")]  # the newest counts
        then = {k: x.get(k, now[k]) for x in said for k in now if k in x or (k == "recipe" and x["changed"])}
        report.wrong += [f"run.json: {k} {now[k]}; expected {then[k]}" for k in then if now[k] != then[k]]
        for file in run.glob("code/*.json"):
            report.compare(f"code/{file.name}", sha256_of(json.loads(file.read_bytes())), file.stem)
        places = [path := Path(told["shards"]["path"]), run.resolve().parent / path.name]
        report.compare(f"shards {path.name}", digest_of_origin(places, "shards"), now["shards"])
        for folder, manifest in artefacts.items():
            if folder.parent in (run / "checkpoints", run / "published") or folder == run / "model":
                check_part(folder, manifest, lines, now["shards"], report)
    except ERRORS as error:
        report.wrong.append(f"run.json, ledger.jsonl or code/ cannot be used: {error!r}")
    return report


def check_part(folder, manifest, lines, shards, report):
    """A checkpoint or a model against the ledger's lines of its step."""
    kind, counts = "end" if folder.name == "model" else "checkpoint", manifest["counts"]
    wrong = [f"made from {x}" for x in manifest["made_from"] if x["kind"] == "shards" and x["digest"] != shards]
    said = [{**x["circumstance"], **x["result"]} for x in lines if x["kind"] == kind]
    said = [line for line in said if line["step"] == counts["step"]]
    if lines and max(line["result"].get("step", 0) for line in lines) < counts["step"]:
        wrong.append(f"is of step {counts['step']}, which the ledger does not reach: lines were lost")
    elif not said:
        report.missing.append(f"{folder.name}: the ledger has no {kind} line of step {counts['step']}")
    if counts.get("form", 1) > FORM:
        wrong.append(f"version {counts['form']}; this program knows {FORM}")
    elif (published := folder.parent.name == "published") or counts.get("form") == FORM:
        step = folder.parents[1] / "checkpoints" / f"step_{counts['step']:06d}"
        told, there = read(step / "digests.json", "mobillama.digests")["tensors"], tensor_digests(folder)
        weights, rest = ({n: d for n, d in told.items() if n.startswith("model.") == mine} for mine in (True, False))
        if published:  # there its tensors have other names
            told, there = sorted(weights.values()), sorted(there.values())
        wrong += [] if told == there else [f"its tensors have not the digests of {step.name}"]
        digests = {"weights": sha256_of(weights), "optimizer": sha256_of(rest), "manifest": root_digest(manifest)}
        for part, digest in digests.items() if not published else ():
            if {counts.get(part, digest), digest} - {line[part] for line in said or [digests]}:
                wrong.append(f"digest of {part} {digest}: not that of its manifest and of the ledger")
    else:
        for part, name in zip(("weights", "optimizer"), SAID[kind], strict=False) if said else ():
            if manifest["files"].get(name, {}).get("sha256") not in [line[part] for line in said]:
                wrong.append(f"{name}: not the {part} of the ledger's {kind} line of step {counts['step']}")
    report.wrong += [f"{folder.name}: {text}" for text in wrong]


def tensor_digests(folder):
    """The digest of every tensor in the safetensors files of a folder, joined from pieces of rows."""
    pieces, found = {}, {}
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        base = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(bytes(data[8:base]))
        places = json.loads(header.pop("__metadata__", {}).get("DCP_SHARDING_INFO", "{}"))
        for name, entry in header.items():
            (start, end), row = entry["data_offsets"], (places.get(name, {}).get("saved_offsets") or [0])[0]
            pieces.setdefault(name, []).append((row, end - start, entry, data[base + start : base + end]))
    for name, parts in pieces.items():
        parts.sort(key=lambda part: part[:2])
        dtype, shape = parts[0][2]["dtype"], list(parts[0][2]["shape"])
        shape[:1] = [sum(part[2]["shape"][0] for part in parts)] if shape else []
        digest = hashlib.sha256(f"{dtype} {json.dumps(shape, separators=(',', ':'))}\n".encode())
        for part in parts:
            digest.update(part[3])
        found[name] = digest.hexdigest()
    return found


def main(paths):
    files = [file for path in paths for file in sorted(Path(path).rglob("*.json"))]
    built = [file for file in files if not file.parent.name.endswith((".partial", ".removed", ".damaged"))]
    checked = {file.parent: check_artefact(file.parent) for file in built if file.name == "manifest.json"}
    known = {folder: manifest for folder, (_, manifest) in checked.items() if manifest}
    runs = [check_run(file.parent, known) for file in built if file.name == "run.json"]
    for report in (reports := [*(report for report, _ in checked.values()), *runs]):
        for text in [*report.wrong, *(f"not checked: {text}" for text in report.missing)]:
            print(f"{report.path}: {text}")
        print(f"{'DIFFERS' if report.wrong else 'ok'} {report.kind} {report.digest} {report.path}")
    return int(any(report.wrong for report in reports)) if reports else "no manifest.json and no run.json there"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]) if sys.argv[1:] else __doc__)
