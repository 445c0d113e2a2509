"""What other servers take: a model repository for Triton."""

from robust_export.deployment.choice import Chosen, choose
from robust_export.deployment.repository import Written, write_repository
from robust_export.deployment.settings import TritonSettings

__all__ = ["Chosen", "TritonSettings", "Written", "choose", "write_repository"]
