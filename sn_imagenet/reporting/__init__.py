"""Tables, figures, verdicts and the report page, from the runs that :mod:`sn_imagenet.runs` reads
and the epochs of ``metrics.jsonl``.

``tables``: :func:`~sn_imagenet.reporting.tables.write_tables`. ``figures.files``:
:func:`~sn_imagenet.reporting.figures.files.write_figures`. ``report``:
:func:`~sn_imagenet.reporting.report.report_runs`. ``claims_report``:
:func:`~sn_imagenet.reporting.claims_report.write_claims`. ``page``:
:func:`~sn_imagenet.reporting.page.write_page`.
"""
