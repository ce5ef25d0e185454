"""A vLLM-shaped inference server for the demo, tests and drills: real processes, real sockets, invented tokens.

One process serves vLLM's HTTP API and metrics page, one more for each data-parallel rank schedules the work. The second
can be stopped or killed, with the consequences that vLLM has. Independent of the rest of dsobs.
"""
