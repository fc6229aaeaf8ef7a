"""An agent's memory on this machine: remember, recall, confirm, replace, and see why: python memory.py"""

from tempfile import TemporaryDirectory

from secondpass import Memory

NOW = "2026-11-28"  # the clock is an argument, so that this prints the same every day

with TemporaryDirectory() as folder:
    memory = Memory(namespace="ada", folder=folder)
    port = memory.remember("The ssh port of the server is 2222", source="mail", now="2025-01-01")
    tea = memory.remember("Ada prefers tea in the morning", source="chat", now="2026-03-01")
    coffee = memory.remember("Ada prefers coffee in the morning", source="an old letter", now="2021-03-01")
    memory.supersede(port, "The ssh port of the server is 2244", now="2026-06-01")
    memory.confirm(tea, source="another chat")
    memory.contradict(coffee, source="Ada")
    memory.contradict(coffee, source="Bo")
    memory.use(tea, now="2026-11-20")

    for question in ("which port does ssh listen on", "what does Ada like in the morning"):
        print(f"\n{question}?")
        for hit in memory.recall(question, top_n=2, now=NOW, explain=True):
            parts = hit.parts or {}
            print(f"{hit.probability:.2f}  {hit.document.text}")
            said = [f"{name} {parts[name]:+.2f}" for name in ("recency", "frequency", "confidence") if parts[name]]
            print(f"      relevance {parts['relevance']:+.2f}, {', '.join(said)}: {parts['final']:+.2f}")

    print("\nAnd in July 2025?")
    print(memory.recall("which port does ssh listen on", top_n=1, as_of="2025-07-01").texts[0])
    memory.close()
