"""`report.html`: one page about a finished run, which needs no server and no network."""
