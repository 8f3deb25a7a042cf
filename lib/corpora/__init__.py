"""Corpora: what ships where, how it is fetched and read, and invented ones."""
