"""A DeepSpeed configuration of the user's own (train.ds_config): what each of its keys becomes here.

Offers: ds_reading.read(tree) -> DsConfig; ds_settings.applied(spec, tree), ds_settings.for_target(...) and
ds_settings.report(...). It imports launcher/job and launcher/errors, and never DeepSpeed, which needs torch.
"""
