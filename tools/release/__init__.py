"""Makes everything that a release consists of: `python -m release`, or `make dist`.

All that is downloaded is pinned by a digest (`uv.lock`, `debian.lock.json`), and what is written depends on the commit
alone, not on the machine, the time or the folder: two builds of one commit give the same bytes.
"""
