"""Faces for other frameworks; each imports its framework when it is first used."""
