"""What looks at the engine, the card and the runtime. Each look has a deadline, one in flight, and its own failures."""
