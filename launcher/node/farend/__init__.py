"""The far end of an SSH session: one process on a host that answers the launcher's questions.

Offers `payload` (the program as bytes, and the command that starts it) and, to tests, its operations by subject:
`host`, `network`, `store`, `runs`. May import the modules of `node` itself and the standard library, Python 3.8.
"""
