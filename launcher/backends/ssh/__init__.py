"""Runs on hosts over SSH: survey, bundle, start, follow, stop, bring home.

Offers: SshBackend; survey, preflight, hostfile.
May import: the same as backends, and remote.
"""
