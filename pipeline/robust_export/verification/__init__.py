"""Is the artifact what was trained: its numbers, and its robustness?"""

from robust_export.verification.results import Report
from robust_export.verification.verify import verify

__all__ = ["Report", "verify"]
