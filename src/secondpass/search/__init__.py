"""The local pipeline: files to chunks, an index of them in one file, and questions answered from it."""
