"""The commands, a file each: its flags, and what it does. `secondpass.cli` has the list."""
