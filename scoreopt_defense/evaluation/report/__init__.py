"""One HTML page of a run, or of two: self-contained, opened from disk, needing no network."""

from __future__ import annotations

from scoreopt_defense.evaluation.report.page import comparison_page, run_page, write

__all__ = ["comparison_page", "run_page", "write"]
