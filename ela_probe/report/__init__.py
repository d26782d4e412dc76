"""The report: an analysis, a plan and a comparison on one self-contained HTML page."""

from ela_probe.report.page import write_report

__all__ = ["write_report"]
