"""One file per command: parse, call, print.

Offers: the commands that launcher/cli.py names.
May import: every room.
"""
