"""Which slides a study has, and one resumable piece of work over all of them.

In: a table (a file or a DataFrame), a folder or a pattern. Out: ``Cohort``, splits, a run with its ledger and report.
Open first: ``cohort.py``, then ``run.py``; tables: ``study_table.py``; columns of the report: ``report_page.py``;
processes, Dask: ``workers/``.
"""
