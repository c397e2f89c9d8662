"""
One reader of the cluster's truth: metrics, monitor.
"""
