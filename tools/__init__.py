"""Commands for before and after training: one per file, `python -m tools.NAME`.

A command's `main` is made with `tools.command.command`; the first line of its docstring is what
`python -m tools` says about it.
"""
