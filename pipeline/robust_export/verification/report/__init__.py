"""Reports of a verification: verify.json, tables for the terminal, report.html."""
