"""From conversations to batches: chat templates, tokens, the cache, and the order of steps.

Offers: Data(config, rundir).train(tokenizer) -> Part; Sampler; packing.
May import: config, errors, rundir, dist, hub, records.
"""
