"""Sounds in batches: what is asked for, row by row, and what is written of it."""
