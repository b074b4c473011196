"""The paper's figures from ``result.json`` and ``metrics.jsonl``: one module each, and one line in
``files.FIGURES``, which writes them: :func:`~sn_imagenet.reporting.figures.files.write_figures`,
:func:`~sn_imagenet.reporting.figures.files.plot_run`.
"""
