"""Native forms of single hot operators. They know nothing of ``nn.Module``."""
