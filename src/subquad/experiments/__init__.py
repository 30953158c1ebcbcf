"""The papers' experiments, one file each, and what runs and reports them.

``registry.EXPERIMENTS`` is the table. Nothing here imports torch before an experiment starts.
"""
