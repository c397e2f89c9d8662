"""
Where circuits live: in the process's memory, or shared through Redis.
"""
