"""What `tools.report` is made of: reading runs, the verdict's rules, curves, pictures."""
