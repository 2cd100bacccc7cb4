"""Jobs of other programs become jobs of zlaunch: what `zlaunch init --from` reads and writes.

`importing.read(source, context)` recognizes a file or a command and offers a Draft: settings, and a reason for every
word that has none. `imported_file.text(draft)` makes a commented job file of it. One file per program; all share the
form in draft.py. It imports launcher/job, train/config and launcher/errors.
"""
