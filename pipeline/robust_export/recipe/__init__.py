"""Recipes: their schema, reading and writing them as TOML, and the defaults of each data set."""
