"""Show a verification to people: verify.json, tables on the terminal, report.html."""
