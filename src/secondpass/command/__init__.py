"""What the commands do: inputs to passages, results to tables. Their options are in options/."""
