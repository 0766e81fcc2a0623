"""Builds clip sets from source recordings."""
