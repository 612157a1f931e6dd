"""Engines generate and score token ids. They know nothing of text, answers or files."""
