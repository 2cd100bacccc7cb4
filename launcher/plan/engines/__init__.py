"""Container engines as data: each engine's words for what a run needs, and what a job may add to them or leave out.

Offers: table.ENGINES and engines_for(); own_words.OwnWords and check().
May import: errors.
"""
