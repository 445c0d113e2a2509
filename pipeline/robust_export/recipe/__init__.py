"""Recipes: their schema, their TOML files, and the defaults of each data set."""
