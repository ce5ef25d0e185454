"""Repair: `plan` decides purely, guards refuse, one actor acts, the ledger remembers, and verification follows.

An attempt is reserved in the ledger before anything is done. An unknown outcome counts as done.
"""
