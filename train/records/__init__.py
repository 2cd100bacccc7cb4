"""Read data files of any format in chunks: each record becomes a conversation, or a problem with its place.

Offers: files.chunks, files.objects, formats.to_conversation, conversations.Record and Problem.
May import: config, errors, hub.
"""
