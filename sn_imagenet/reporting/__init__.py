"""Tables and figures of the paper, made from ``result.json``, ``config.yaml`` and
``metrics.jsonl`` alone.

``tables``: :func:`~sn_imagenet.reporting.tables.write_tables`,
:func:`~sn_imagenet.reporting.tables.top1_table`. ``figures``:
:func:`~sn_imagenet.reporting.figures.write_figures`,
:func:`~sn_imagenet.reporting.figures.plot_run`. ``runs``: finding and reading run directories.
"""
