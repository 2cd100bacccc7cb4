"""Turn conversations into batches: tokens, their cache, the order of records, packing.

Offers: dataset.Data(config, rundir).train(tokenizer) -> Part; schedule.Sampler; prompts; batches and packing.
May import: config, errors, rundir, dist, hub, records, templating.
"""
