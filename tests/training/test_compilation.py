import jax
import pytest

from offline_mbrl.training import compilation


@pytest.fixture(autouse=True)
def _settings():
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_the_cache_goes_where_it_is_told(tmp_path, monkeypatch):
    assert compilation.enable(tmp_path / "given") == tmp_path / "given"
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "given")
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setenv("OFFLINE_MBRL_CACHE", str(tmp_path / "variable"))
    assert compilation.enable() == tmp_path / "variable"
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.delenv("OFFLINE_MBRL_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert compilation.enable() == tmp_path / ".cache/offline_mbrl/xla"


def test_the_users_own_choice_stays(tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "own"))
    assert compilation.enable(tmp_path / "other") == tmp_path / "own"
    assert not (tmp_path / "other").exists()


def test_a_folder_that_cannot_be_written_means_no_cache(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    assert compilation.enable(tmp_path / "file" / "below") is None
    monkeypatch.setattr(compilation.os, "access", lambda *_: False)
    assert compilation.enable(tmp_path / "read-only") is None
    assert jax.config.jax_compilation_cache_dir is None
