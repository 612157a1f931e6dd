"""What a run found, to look at: one HTML page, and marked text in the terminal. Knows records only."""
