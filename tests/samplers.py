"""A sampler beside a study."""

from __future__ import annotations

import math

import vmaptune as vt


def follow(sampler: vt.Sampler, study: vt.Study) -> None:
    """Tells the sampler what the study's trials came to; it must propose each of them, and then be done."""
    for row in study.trials():
        (asked,) = sampler.ask()
        assert (asked.trial, asked.params, asked.seed, asked.round, asked.of) == (
            row.trial, dict(row.params), row.seed, row.round, row.of,
        )  # fmt: skip
        sampler.tell([(asked.trial, row.value if row.state == "COMPLETE" else math.nan)])
    assert sampler.done
