"""``python -m cli``, which is what ``torchrun -m cli train …`` starts."""

from __future__ import annotations

from cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
