"""The engine: the rules, which say what each operation means. It knows no HTTP."""
