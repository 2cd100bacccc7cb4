"""Shared by the suites: places of the checkout, small models, records, hosts and runs to test on."""
