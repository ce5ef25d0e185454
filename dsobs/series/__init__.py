"""Metrics pages in, series in memory."""
