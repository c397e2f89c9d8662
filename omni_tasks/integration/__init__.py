"""
The breaker inside Celery: the gate, the lot, the recording, the mover.
"""
