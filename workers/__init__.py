"""
A Celery application that has articles written, as an example of ``omni_tasks`` at work.
"""

from __future__ import annotations

# Eagerly, although the module of the same name is inside: the attribute that
# ``celery -A workers`` looks up must be the application, not that module.
from workers.app import app

__all__ = ["app"]
