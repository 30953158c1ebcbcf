"""What is trained, and how: tasks (pixels, copying) and a short loop on Lightning Fabric.

Nothing is imported here: ``subquad.tasks.config`` must stay free of torch.
"""
