"""Logs of evaluations that other packages wrote: one reader a format, one type for all."""
