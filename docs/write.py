"""Write what README and docs take from runs: the demo's table and model card, the comparison's claims and tables.

    accelerate launch examples/meta_tune.py && python docs/write.py --demo outputs/demo
    python examples/compare.py && python docs/write.py
    python docs/write.py --check

What a run left is kept in docs/results, so that the pages can be written again, and checked, without it.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results"
DEMO = RESULTS / "demo"
COMPARISON = RESULTS / "comparison.md"  # claims first, then a section for each table
CARD, FIGURES = "README.md", "metrics.json"
CARD_PAGE = """\
# What a model card looks like

`examples/meta_tune.py` leaves one beside the adapter, as its `README.md`, which the Hub shows as the adapter's page.
This is the demo's; its head, between the lines of dashes, is what the Hub reads.

~~~~markdown
{card}
~~~~
"""


def pages() -> dict[Path, str]:
    """Each page that is written, with what it should hold."""
    readme, results = ROOT / "README.md", ROOT / "docs" / "results.md"
    card, comparison = (path.read_text(encoding="utf-8").strip() for path in (DEMO / CARD, COMPARISON))
    table = re.search(r"^## Evaluation\n+(.*?)\n+## ", card, re.DOTALL | re.MULTILINE)
    assert table, f"{DEMO / CARD} has no evaluation"
    front = between(readme.read_text(encoding="utf-8"), "table:demo", without_routing(table[1]))
    return {
        readme: between(front, "table:claims", comparison.partition("\n\n###")[0]),
        results: between(results.read_text(encoding="utf-8"), "table:comparison", comparison),
        ROOT / "docs" / "card.md": CARD_PAGE.format(card=card),
    }


def without_routing(tables: str) -> str:
    """The tables of a card without the one of other mixes of the experts."""
    accuracies, _, caption = tables.split("\n\n")
    return f"{accuracies}\n\n{caption}"


def between(text: str, mark: str, content: str) -> str:
    """A page with other content between `<!-- mark -->` and `<!-- /mark -->`."""
    start, end = f"<!-- {mark} -->\n", f"\n<!-- /{mark} -->"
    before, _, rest = text.partition(start)
    _, found, after = rest.partition(end)
    assert found, f"no marks {start.strip()} and {end.strip()}"
    return before + start + content + end + after


def main(argv: Sequence[str] | None = None) -> int:
    """Write, or say which pages would change; the exit status says so, too."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, metavar="FOLDER", help="Output directory of a run of the demo to take.")
    parser.add_argument("--check", action="store_true", help="Write nothing; fail where a page is another.")
    arguments = parser.parse_args(argv)
    if arguments.demo is not None:
        DEMO.mkdir(parents=True, exist_ok=True)
        for name in (CARD, FIGURES):
            shutil.copyfile(arguments.demo / name, DEMO / name)
    changed = {path: text for path, text in pages().items() if not path.exists() or path.read_text("utf-8") != text}
    for path, text in changed.items():
        print(f"{path.relative_to(ROOT)} {'is not as it would be written' if arguments.check else 'written'}")
        if not arguments.check:
            path.write_text(text, encoding="utf-8")
    return 1 if arguments.check and changed else 0


if __name__ == "__main__":
    sys.exit(main())
