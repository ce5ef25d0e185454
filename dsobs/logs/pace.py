"""How often things are done, in seconds. Fixed in operation; tests go faster."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pace:
    """Intervals of the loop."""

    look: float = 0.1
    """Between two looks at files that grew in the last minute."""
    look_idle: float = 2.0
    """Between two looks at all files."""
    scan: float = 1.0
    """Between two looks for new files; a folder that has not changed is not read again."""
    deep_scan: float = 10.0
    """The same for patterns with `**`, and for all, whatever the folders' times say."""
    tick: float = 1.0
    """Between two savings of what is acknowledged."""
    flush: float = 1.0
    """A record that may go on is sent as it is after this long without a further line."""
    renamed: float = 300.0
    """A renamed file is closed after this long without a further line: writers notice a rotation late."""
    deleted: float = 30.0
    """The same for a deleted one, which holds disk space."""
    drain: float = 5.0
    """What a stop may take to have the last records acknowledged; the rest is sent after the next start."""
    retry: float = 1.0
    """Share of what `dsobs.logs.retry` says that is waited."""
