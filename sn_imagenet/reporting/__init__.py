"""Tables and figures of the paper, made from what :mod:`sn_imagenet.runs` reads.

``tables``: :func:`~sn_imagenet.reporting.tables.write_tables`,
:func:`~sn_imagenet.reporting.tables.top1_table`. ``figures``:
:func:`~sn_imagenet.reporting.figures.write_figures`,
:func:`~sn_imagenet.reporting.figures.plot_run`.
"""
