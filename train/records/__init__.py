"""Records: data files of any format, read in chunks, become conversations, or a problem with its place.

Offers: files.chunks and digest, formats.conversation, conversations.Record.
May import: config, errors, hub.
"""
