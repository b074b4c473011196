"""The paper's figures from ``result.json`` and ``metrics.jsonl``: one file each, and one line in
:data:`FIGURES`. ``files`` writes them: :func:`~sn_imagenet.reporting.figures.files.write_figures`,
:func:`~sn_imagenet.reporting.figures.files.plot_run`.
"""
