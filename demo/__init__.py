"""
The main job, shown live: a provider goes down, its tasks are held, nothing fails.

``python -m demo`` is a user of omni_tasks like any other: it uses public names only.
"""
