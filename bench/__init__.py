"""
Measurements of the package on this machine; run with ``make bench``.
"""
