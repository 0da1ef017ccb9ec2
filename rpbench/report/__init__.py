"""Scored boards as text, tables, pages and figures. No torch."""
