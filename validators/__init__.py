"""What looks at a running server or a file and returns verdicts."""
