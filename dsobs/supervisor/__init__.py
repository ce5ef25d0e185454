"""`dsobs supervise -- COMMAND`: owns an engine process and outlives dsobs. Standard library only.

It starts COMMAND in a session of its own, is the subreaper of everything below it (and works as PID 1), forwards
signals and restarts the engine by policy. When the main process ends, whatever is left of it is killed, so that no
orphan keeps the GPU's memory, and nothing is started before the last of it is gone.

Output: the engine writes to pipes which are read at once, so that it never stands still for a slow terminal. What is
read goes on unchanged to the supervisor's own stdout and stderr (one pipe for both where they are the same file, which
keeps their order), is kept in a bounded ring of lines, and is optionally written to a file. Each of these has a queue
of `QUEUE_BYTES`; what a stuck reader has no room for is dropped and counted in `dropped_bytes` of the status: losing
lines of a log is the lesser evil beside an engine that stands still.

Control: a UNIX socket (mode 0600), one JSON object a line each way, all with `"version": 1`:

- `{"version": 1, "op": "status"}` answers `{"version": 1, "ok": true, "status": {…}}`, see `Supervisor.status`.
- `{"version": 1, "op": "log_tail", "lines": 100}` answers `{…, "lines": ["…"]}`.
- `{"version": 1, "op": "restart", "id": "…", "grace_seconds": 10, "expect_started_at": 1.5}` answers
  `{…, "started_at": …}` once the new engine runs. The same id again gets the same answer and does nothing.
- Errors: `{"version": 1, "ok": false, "error": KIND, "detail": "…"}`; KIND is `bad_request` or `refused` (surely
  nothing was done) or `failed` (the engine was stopped, and did not start again).

Beside SOCKET lie SOCKET.lock (one supervisor a socket) and SOCKET.state: the status at the last change, as it is after
the supervisor has ended, with what the next one needs: the session of the engine, starts of the last 24 h, request ids.
"""

VERSION = 1
"""Of the control socket's protocol and of the state file."""
DEFAULT_SOCKET = "/run/dsobs/supervise.sock"
