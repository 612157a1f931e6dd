"""Is the answer right? Extraction, comparison and the worker processes they run in."""
