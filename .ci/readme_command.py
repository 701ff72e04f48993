"""Prints the README's command under a marker: `<!-- command: NAME -->` and the fenced block below it."""

import pathlib
import re
import sys

text = (pathlib.Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
found = re.search(rf"<!-- command: {re.escape(sys.argv[1])} -->\s*```[a-z]*\n(.*?)```", text, re.S)
if not found:
    sys.exit(f"README.md has no command marked {sys.argv[1]!r}")
print(found.group(1).strip())
