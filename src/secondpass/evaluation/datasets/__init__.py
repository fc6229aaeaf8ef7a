"""Layouts of data for evaluation."""
