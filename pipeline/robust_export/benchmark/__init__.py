"""How fast it is: whole models and the operator alone, side by side in one process."""
