"""One module per kind of fault that must not pass silently; what concerns one room only is tested there.

A module lists its cases in one table, so that a new report is a new line.
"""
