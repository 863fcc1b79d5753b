"""What an answer is worth: functions by name, each called in a process of its own that may hang or die."""
