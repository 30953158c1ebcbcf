"""Other libraries' names over this library's models, for users who come from there."""
