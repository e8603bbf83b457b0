"""Edits as small files: what a patch holds, and how it lives on a model."""
