"""Apps to start from. Each is a package that APP can name: `APP=examples.reminder`."""
