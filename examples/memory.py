"""An agent's memory on this machine: remember, recall, replace, and see why."""

from tempfile import TemporaryDirectory

from secondpass import Memory

with TemporaryDirectory() as folder:
    memory = Memory(namespace="ada", folder=folder)
    port = memory.remember("The ssh port of the server is 2222", subject="ssh port", source="mail", now="2025-01-01")
    memory.remember("Ada prefers green tea in the morning", now="2025-03-01")
    memory.supersede(port, "The ssh port of the server is 2244", now="2026-06-01")
    for hit in memory.recall("which port does ssh listen on", top_n=2, explain=True):
        print(f"{hit.probability:.2f}  {hit.document.text}")
        print(f"      {dict(hit.parts or {})}")
    print(memory.recall("which port does ssh listen on", top_n=1, as_of="2025-07-01").texts)
    memory.close()
