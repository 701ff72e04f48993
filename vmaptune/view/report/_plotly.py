"""Plotly, which is optional: the figures' library and its JavaScript."""

from __future__ import annotations

import base64
import gzip
from functools import lru_cache
from importlib.resources import files
from importlib.util import find_spec
from typing import Any

from vmaptune.errors import InputError

ADVICE = "pip install 'vmaptune[report]' (or: pip install plotly)"


def available() -> bool:
    """Whether Plotly is installed; it is not imported."""
    return find_spec("plotly") is not None


def graph_objects() -> Any:
    """`plotly.graph_objects`. Raises InputError when it is not installed."""
    try:
        import plotly.graph_objects as go
    except ImportError:
        raise InputError(f"figures need Plotly, which is not installed: {ADVICE}") from None
    return go


@lru_cache(maxsize=1)
def packed_javascript() -> str:
    """plotly.min.js, gzipped, base64; the page unpacks it. Raises InputError when Plotly is not installed."""
    if not available():
        raise InputError(f"the report needs Plotly, which is not installed: {ADVICE}")
    # Not through `import plotly`, which takes longer than all the rest of a small report.
    script = (files("plotly") / "package_data" / "plotly.min.js").read_bytes()
    return base64.b64encode(gzip.compress(script, 6, mtime=0)).decode("ascii")
