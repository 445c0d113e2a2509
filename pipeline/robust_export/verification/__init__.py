"""Is the artifact what was trained: its numbers, and its robustness?"""
