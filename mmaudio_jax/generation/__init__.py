"""Batch generation: sounds for many videos, pictures and words, none made twice."""
