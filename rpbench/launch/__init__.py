"""Cells on machines that somebody else hands out."""
