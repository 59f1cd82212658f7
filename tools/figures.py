"""Write the tables of measured figures into the pages from docs/measured.json: `python tools/figures.py [--check]`.

docs/measured.json holds what was measured, page by page, with the command, the machine and the date; the pages show it
and state no figure of their own. With --check nothing is written and the exit status is 1 if a page is behind.
"""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
START, END = "<!-- figures: made by tools/figures.py from docs/measured.json -->", "<!-- end of figures -->"


def table(measured: dict) -> str:
    """A page's measured figures as a Markdown table with a line that says where and when."""
    lines = ["| measured | figure | with |", "|---|---|---|"]
    lines += [f"| {row['what']} | **{row['figure']}** | `{row['command']}` |" for row in measured["rows"]]
    return "\n".join([*lines, "", f"On {measured['machine']}, {measured['date']}."])


def filled(page: str, text: str, measured: dict) -> str:
    """The page's text with the table between the two marks."""
    before, _, rest = text.partition(START)
    _, mark, after = rest.partition(END)
    if not mark:
        raise SystemExit(f"{page} lacks the marks {START!r} and {END!r}")
    return f"{before}{START}\n{table(measured)}\n{END}{after}"


def main() -> None:
    """Fill in or check every page that docs/measured.json names."""
    behind = []
    for page, measured in json.loads((ROOT / "docs" / "measured.json").read_text(encoding="utf-8")).items():
        path = ROOT / page
        text = path.read_text(encoding="utf-8")
        wanted = filled(page, text, measured)
        if text != wanted:
            behind.append(page)
            if "--check" not in sys.argv[1:]:
                path.write_text(wanted, encoding="utf-8")
    if behind and "--check" in sys.argv[1:]:
        sys.exit(f"{', '.join(behind)} behind docs/measured.json: run python tools/figures.py")


if __name__ == "__main__":
    main()
