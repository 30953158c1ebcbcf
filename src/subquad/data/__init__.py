"""Data sets and synthetic tasks, one file each. Nothing is downloaded at import."""
