"""Tests that this build opens stores of an earlier one: raw storage, lake, Dagster home, registry, settings.

`before_e96414f.tar.xz` holds small stores that the build of commit e96414f wrote, and in `expected.json` what
that build read in them. `facts.py` asks both builds the same questions. The archive is written once and
committed. To write it again, use the interpreter of that build, never a later one:

    git worktree add ../before e96414f && make -C ../before setup
    ../before/.venv/bin/python cryptovol_dagster_tests/compat/make_fixture.py ../before
"""
