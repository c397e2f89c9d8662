"""
The rules, pure: no clock, no socket, no thread, no Celery, no Redis.
"""
