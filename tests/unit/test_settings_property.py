"""Settings.load under random environments."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from config import Settings, SettingsError, asyncpg_pool_kwargs, tortoise_config
from config.near_miss import edit_distance
from config.variables import VARIABLES, secret_names

PASSWORD = "Pw-7f3aQx!9"
NAMES = st.one_of(
    st.sampled_from([v.name for v in VARIABLES if v.name not in ("DATABASE_URL", "REDIS_URL")]),
    st.sampled_from([f"{role}_{v.name}" for role in ("WORKER", "BOT") for v in VARIABLES if v.group == "DB"]),
    st.sampled_from([f"{v.name}_FILE" for v in VARIABLES]),
    st.sampled_from(["DB_POOL_SIZE", "DB_MAX_OVERFLOW", "PG_POOL_SIZE", "DB_POLL_MAX", "POOL_USE_LIFO", "DB_FOO"]),
    st.from_regex(r"\A(DB|WORKER_DB|REDIS|BOT)_[A-Z_]{1,12}\Z"),
)
TEXTS = st.one_of(
    st.text(max_size=30),
    st.integers(-5, 20_000).map(str),
    st.floats(allow_nan=True).map(str),
    st.sampled_from(
        ["", " ", "true", "prefer", "a,b", "1,2", "tcp://10.0.0.1:1", "\0", "json", "console", "/dev/null"]
    ),
    st.just(PASSWORD),
    st.text(max_size=8).map(lambda text: f"{text}{PASSWORD}{text}"),
)
URLS = st.one_of(
    st.builds(
        "{}://{}:{}@{}/{}{}".format,
        st.sampled_from(["postgres", "postgresql", "mysql", "redis", "rediss", ""]),
        st.text(alphabet="ab/@:?#%", max_size=5),
        st.sampled_from([PASSWORD, f"/{PASSWORD}", f"#{PASSWORD}", f"?{PASSWORD}", f"a@{PASSWORD}", f"1/{PASSWORD}"]),
        st.text(alphabet="hm,:1[]%", max_size=8),
        st.text(alphabet="d/ ?", max_size=3),
        st.sampled_from(["", "?sslmode=require", "?minsize=1", "?connect_timeout=x", "?ssl=1", "#x"]),
    ),
    st.text(max_size=20).map(lambda text: f"{text}{PASSWORD}"),
)


@settings(max_examples=1000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    role=st.sampled_from(["worker", "bot", "poolctl"]),
    environ=st.dictionaries(NAMES, TEXTS, max_size=12),
    database_url=st.none() | URLS,
    redis_url=st.none() | URLS,
)
def test_settings_or_the_one_error_and_never_the_password(
    role: str, environ: dict[str, str], database_url: str | None, redis_url: str | None
) -> None:
    """Any environment gives settings or SettingsError, and neither text, log nor output shows the password."""
    environ = {**environ, "DB_PASSWORD": PASSWORD, "REDIS_PASSWORD": PASSWORD}
    if database_url is not None:
        environ["DATABASE_URL"] = database_url
    if redis_url is not None:
        environ["REDIS_URL"] = redis_url
    output, log = io.StringIO(), io.StringIO()
    handler = logging.StreamHandler(log)
    logging.getLogger().addHandler(handler)
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output), warnings.catch_warnings():
            warnings.simplefilter("error")
            refused: SettingsError | None = None
            try:
                loaded = Settings.load(role, environ)  # type: ignore[arg-type]
            except SettingsError as error:
                refused = error
            if refused is not None:
                text = f"{refused}{refused!r}{refused.faults}"
                assert len(str(refused).splitlines()) == len(refused.faults) > 0
            else:
                # A name or host that *is* the password is the user's own publication of it.
                published = any(PASSWORD in value for name, value in environ.items() if name not in secret_names())
                text = "" if published else f"{loaded!r}{loaded.pool_line()}{loaded.warnings}"
                text += f"{asyncpg_pool_kwargs(loaded)['password']!r}"
                tortoise_config(loaded)
                assert 0 <= loaded.db.pool_min <= loaded.db.pool_max
                assert len(loaded.db.application_name.encode()) <= 63
    finally:
        logging.getLogger().removeHandler(handler)
    assert PASSWORD not in text + output.getvalue() + log.getvalue()


@settings(max_examples=300, deadline=None)
@given(a=st.text(alphabet="abc", max_size=6), b=st.text(alphabet="abc", max_size=6))
def test_edit_distance_is_symmetric_and_bounded(a: str, b: str) -> None:
    """The distance is 0 only for equal words, the same both ways, and never above its bound plus one."""
    distance = edit_distance(a, b)
    assert (distance == 0) == (a == b)
    assert distance == edit_distance(b, a)
    assert distance <= 3


def test_edit_distance_counts_a_swap_once() -> None:
    """Two letters exchanged are one edit, as typists make it."""
    assert edit_distance("DB_POOL_MXA", "DB_POOL_MAX") == 1
    assert edit_distance("abcd", "ab") == 2
    assert edit_distance("abcde", "ab") == 3
