"""Runs on hosts over SSH: survey, send, start, watch, stop, copy results.

Offers: SshBackend in hosts.py, preflight.examine, and the hosts a job requests (host_request.py).
May import: the same as backends.
"""
