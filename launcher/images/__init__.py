"""Container images: choose, build, pin, carry, and ask about them here and on hosts.

Offers: choose_container(spec, backend, device); build, save, load; question and answer for hosts.
May import: errors, assets, machine, job, plan.
"""
