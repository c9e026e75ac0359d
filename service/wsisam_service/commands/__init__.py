"""The subcommands of `wsisam`: each module adds its parser and runs it. Torch is imported only when one needs it."""
