"""From records to a page: the study's tables and figures, and what to deploy. Imports no torch."""

from bitladder.report.output import ResultsFile, write_report

__all__ = ["ResultsFile", "write_report"]
