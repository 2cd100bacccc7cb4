"""SSH plumbing: addresses, configuration, host keys, connections. Knows no run.

Offers: Options, prepare, explain, Session.call, Fleet.each and Fleet.all.
May import: errors, node.
"""
