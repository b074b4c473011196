"""Tables, figures, verdicts and the report page, from the runs that :mod:`sn_imagenet.runs` reads
and the epochs of ``metrics.jsonl``.

``tables``: :func:`~sn_imagenet.reporting.tables.write_tables`,
:func:`~sn_imagenet.reporting.tables.run_tables`. ``figures.files``:
:func:`~sn_imagenet.reporting.figures.files.write_figures`,
:func:`~sn_imagenet.reporting.figures.files.plot_run`. ``claims_report``:
:func:`~sn_imagenet.reporting.claims_report.write_claims`. ``page``:
:func:`~sn_imagenet.reporting.page.write_page`.
"""
