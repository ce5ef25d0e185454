"""The flight recorder: raw scrapes on disk, bounded, in the form that `dsobs replay` reads and an incident bundle
holds."""
