"""The stages: respond, annotate, train, evaluate, compare. Each reads files and writes a file; none imports another."""
