"""Tables of results: what to run, what came of it, how it compares."""
