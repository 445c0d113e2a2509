"""Files, devices, random numbers, timing, and other tools without knowledge of models."""
