"""Cruxtune."""
