"""Operators as pure functions on tensors: definition, fast forms, state."""
