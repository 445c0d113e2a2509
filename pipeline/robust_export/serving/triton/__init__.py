"""What other servers take: a model repository for Triton."""
