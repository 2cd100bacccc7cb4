"""SSH plumbing: addresses, hostfiles, configuration, host keys, connections, conversations with hosts. Knows no run.

Offers: Options, Connection; Session.call; Fleet.for_each_host and Fleet.on_all_hosts.
May import: errors, node, machine.
"""
