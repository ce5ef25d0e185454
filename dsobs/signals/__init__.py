"""What needs memory or judgement: progress and stall, probe verdicts, life cycle, effective memory, restarts in 24 h.

All of it is pure state over observations; nothing here does input or output.
"""
