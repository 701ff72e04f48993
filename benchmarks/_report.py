"""What every benchmark here shares: the header, the rows, and how they are printed and written as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def machine_and_versions() -> tuple[dict[str, Any], dict[str, Any]]:
    """The machine and the versions that figures belong to."""
    from vmaptune.engine.devices import machine

    found = machine()
    del found["products"]  # of the process that measures, not of this one
    hardware = ("platform", "device", "devices", "processor", "cores")
    return {k: found[k] for k in hardware}, {k: v for k, v in found.items() if k not in hardware}


def row(name: str, value: float, target: str, ok: bool, **more: Any) -> dict[str, Any]:
    """One figure and its bar."""
    return {"name": name, "value": value, "target": target, "ok": bool(ok), **more}


def finish(title: str, rows: Sequence[dict[str, Any]], json_file: str | None) -> int:
    """Prints the rows, writes them as JSON where asked to; returns the exit code: 1 where a bar is missed."""
    machine, versions = machine_and_versions()
    print(f"{title} · {machine['processor']}, {machine['cores']} cores, {machine['device']} · "
          + ", ".join(f"{k} {v}" for k, v in versions.items()))  # fmt: skip
    for item in rows:
        value = item["value"]
        shown = f"{value:.4g}" if isinstance(value, float) else str(value)
        print(f"  {'ok  ' if item['ok'] else 'MISS'} {item['name']}: {shown} (bar: {item['target']})")
    if json_file:
        text = json.dumps({"machine": machine, "versions": versions, "rows": list(rows)}, indent=1)
        Path(json_file).write_text(text + "\n", encoding="utf-8")
    return 0 if all(item["ok"] for item in rows) else 1
