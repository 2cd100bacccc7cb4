"""What every key of a job means: the one table from which all references are made.

`key_reference.keys()` offers each key with its type, default, range, texts in both languages, example and the names of
peers for it. The rest of the room makes something of it: a commented job file, a JSON Schema, pages, answers to words
of other programs. Only commands that show texts import it. It imports launcher/job and launcher/errors.
"""
