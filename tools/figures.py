"""Write the table of measured figures into README.md from docs/measured.json: `python tools/figures.py [--check]`.

docs/measured.json holds what was measured, with the command, the machine and the date; README shows it and states no
figure of its own. With --check nothing is written and the exit status is 1 if README is behind.
"""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
START, END = "<!-- figures: made by tools/figures.py from docs/measured.json -->", "<!-- end of figures -->"


def table(measured: dict) -> str:
    """The measured figures as a Markdown table with a line that says where and when."""
    lines = ["| measured | figure | with |", "|---|---|---|"]
    lines += [f"| {row['what']} | **{row['figure']}** | `{row['command']}` |" for row in measured["rows"]]
    return "\n".join([*lines, "", f"On {measured['machine']}, {measured['date']}."])


def filled(readme: str, measured: dict) -> str:
    """README's text with the table between the two marks."""
    before, _, rest = readme.partition(START)
    _, mark, after = rest.partition(END)
    if not mark:
        raise SystemExit(f"README.md lacks the marks {START!r} and {END!r}")
    return f"{before}{START}\n{table(measured)}\n{END}{after}"


def main() -> None:
    """Fill in or check README.md."""
    path = ROOT / "README.md"
    readme = path.read_text(encoding="utf-8")
    wanted = filled(readme, json.loads((ROOT / "docs" / "measured.json").read_text(encoding="utf-8")))
    if "--check" in sys.argv[1:]:
        sys.exit(readme != wanted and "README.md is behind docs/measured.json: run python tools/figures.py")
    path.write_text(wanted, encoding="utf-8")


if __name__ == "__main__":
    main()
