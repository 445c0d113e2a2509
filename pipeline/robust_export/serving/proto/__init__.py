"""Protocol buffer schemas (`.proto`), each with the descriptors that `make proto` compiles from it."""
