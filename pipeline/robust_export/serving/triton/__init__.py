"""What other servers take: a model repository for Triton."""

from robust_export.serving.triton.artifact_choice import Chosen, choose
from robust_export.serving.triton.repository import Written, write_repository
from robust_export.serving.triton.settings import TritonSettings

__all__ = ["Chosen", "TritonSettings", "Written", "choose", "write_repository"]
