"""What the commands do: inputs to passages, results to tables. cli.py parses and calls."""
