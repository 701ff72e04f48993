"""Runs the notebook's installation cell with this checkout as its source: what is installed must stay as it is."""

import json
import pathlib
import subprocess
import sys
import tempfile
from importlib import metadata

ROOT = pathlib.Path(__file__).resolve().parent.parent


def installed():
    """The version of each installed package."""
    return {found.metadata["Name"]: found.version for found in metadata.distributions()}


notebook = json.loads((ROOT / "experiments" / "colab.ipynb").read_text(encoding="utf-8"))
cell = next("".join(c["source"]) for c in notebook["cells"] if "%pip install" in "".join(c["source"]))
cell = cell.replace('"vmaptune[report]"', repr(f"{ROOT}[report]"))
cell = cell.replace('%pip install -q "$SOURCE" -c kept.txt', "pip('install', '-q', SOURCE, '-c', 'kept.txt')")
before = installed()
with tempfile.TemporaryDirectory() as folder:
    code = f"import os, subprocess, sys; os.chdir({folder!r})\n"
    code += "def pip(*command): subprocess.run([sys.executable, '-m', 'pip', *command], check=True)\n"
    subprocess.run([sys.executable, "-c", code + cell], check=True, cwd=folder)
after = installed()
changed = {name: (version, after.get(name)) for name, version in before.items() if after.get(name) != version}
if changed or "vmaptune" not in after:
    sys.exit(f"the notebook's installation must add vmaptune and change nothing, but it changed {changed}")
print(f"the notebook's installation added {', '.join(sorted(set(after) - set(before)))} and changed nothing")
