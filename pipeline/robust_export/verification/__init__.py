"""Is the artifact what was trained: its numbers, and its robustness?"""

from robust_export.verification.report import Report
from robust_export.verification.run import verify

__all__ = ["Report", "verify"]
