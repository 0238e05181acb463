"""Every setting of a run, checked: no torch here."""
