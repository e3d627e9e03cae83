"""The monitor: periodic tasks that may never touch reception."""
