"""Millions of pairs: blocks of rows that are scored once each, in one process or on Ray."""
