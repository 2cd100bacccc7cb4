"""The commands, one file each: parse options, call the other rooms, print.

Offers: the commands in the table of launcher/cli.py.
May import: every room.
"""
