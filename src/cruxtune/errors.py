"""What can go wrong, as a tree.

CruxtuneError            something a user can act on: one line on stderr, exit code 2
├── ConfigError          a flag, recipe field or environment that cannot work
├── DataError            a file or row that cannot be used
├── StoreError           a dataset directory: other settings, unfinished, locked
├── ModelError           a model or tokenizer that cannot be loaded or does not fit
└── VerifierError        a verifier that cannot be started or imported

Every message says what happened (with the value), why, and what to do, and names the field and the flag.
Anything that is not a CruxtuneError is a bug of ours and keeps its traceback.
"""


class CruxtuneError(Exception):
    """Base of every error that a user can act on."""


class ConfigError(CruxtuneError):
    """A flag, recipe field or environment that cannot work."""


class DataError(CruxtuneError):
    """A file or row that cannot be used."""


class StoreError(CruxtuneError):
    """A dataset directory that belongs to other settings, is unfinished, or is in use."""


class ModelError(CruxtuneError):
    """A model, adapter or tokenizer that cannot be loaded or does not fit."""


class VerifierError(CruxtuneError):
    """A verifier that cannot be started or imported."""


class ElsewhereError(CruxtuneError):
    """Another process of the same training failed, and says why itself."""
