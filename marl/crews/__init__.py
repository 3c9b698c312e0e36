"""Processes that play, and the bookkeeping of what they were asked."""
