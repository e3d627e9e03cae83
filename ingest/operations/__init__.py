"""Operations on a node: functions that read or change deliveries and instances, and return values.

The command line prints the values; a web console can return them as JSON. Nothing here prints.
"""
