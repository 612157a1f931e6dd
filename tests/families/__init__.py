"""Families of models: what their tokenizers and configs are in the habit of, and all stages with each."""
